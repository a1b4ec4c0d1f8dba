"""A program that answers prompts on one rank or several: ``python -m tests.kit.ranks FOLDER RANKS MLA``.

It prints the greedy tokens, the reuse and the engine's statistics as JSON. The other ranks write to the
same pipe: whoever reads it to its end has waited for all of them to have ended.
"""

from __future__ import annotations

import json
import os
import sys

from engine.config import EngineConfig
from engine.loading import make_service
from engine.request import GenerationRequest, SamplingParams, TokenEvent

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


def main(folder: str, ranks: str, mla: str) -> None:
    """Two prompts together, then the first again."""
    config = EngineConfig(
        model=folder, dtype="float32", kv_memory=4 << 20, threads=1, mla=mla,
        tensor_parallel=int(ranks),
    )  # fmt: skip

    def fatal(why: str) -> None:
        raise RuntimeError(why)

    service = make_service(config, wall_clock=lambda: 0.0, on_fatal=fatal)
    prompts = [[(13 * n * n + k) % 260 for n in range(150 - k)] for k in (0, 90)]
    heard: dict[str, list[TokenEvent]] = {}
    for names in (("a", "b"), ("again",)):
        for number, name in enumerate(names):
            heard[name] = []
            prompt = tuple(prompts[number])
            service.engine.scheduler.add(GenerationRequest(id=name, prompt=prompt, sampling=GREEDY))
        while service.engine.scheduler.busy:
            for event in service.engine.step():
                heard[event.request_id].append(event)
    answer = {
        "tokens": {name: [event.token for event in events] for name, events in heard.items()},
        "hit_tokens": heard["again"][-1].hit_tokens,
        "stats": service.stats(),
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # as the engine ends
