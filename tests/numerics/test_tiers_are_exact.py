"""Where a block was in the meantime changes no bit: pool, host memory, disk, another process.

Cold = prefix hit = after eviction and restore from memory = from disk = after a restart. `torch.equal` on the
logits of the prompt's last row and of each row of the answer, and the bytes of the blocks themselves.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.fingerprint import block_fingerprint
from engine.kv.opening import open_tiers
from engine.loading import make_service
from engine.request import GenerationRequest, SamplingParams, Sequence
from engine.scheduler import Schedule
from tests.kit.tiny_model import TinyLlama

ROOT = Path(__file__).parent.parent.parent
BLOCK = 32
TOKENS = tuple(3 + (11 * i * i + 5 * i + i // 7) % 250 for i in range(7 * BLOCK + 5))
OTHER = tuple(3 + (7 * i * i + i) % 250 for i in range(9 * BLOCK))
ANSWER = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """All that was computed for one request: logits by row, and where the prompt's tokens came from."""

    logits: Tensor  # (rows, V)
    sequence: Sequence
    blocks: list[bytes]

    def equals(self, other: Answer) -> bool:
        return torch.equal(self.logits, other.logits) and self.blocks == other.blocks


class Desk:
    """A real engine on a tiny model; `warm` forces a tier of host memory beside a pool that is there too."""

    def __init__(self, folder: Path, dtype: str, *, disk: Path | None = None, warm: bool = False):
        config = EngineConfig(
            model=str(folder),
            dtype=dtype,
            chunk_tokens=64,
            threads=1,
            speculate_tokens=0,  # guesses are rows too, and depend on what was answered before
            kv_memory=10 * BLOCK * 2 * 2 * 2 * 32 * (4 if dtype == "float32" else 2),
            kv_disk_path=None if disk is None else str(disk),
            kv_disk_max=64 << 20,
        )
        service = make_service(config, wall_clock=time.time, on_fatal=pytest.fail)
        # the engine knows its runner and tiers by what it needs of them, the test looks further
        self.engine = cast("Any", service.engine)
        self.scheduler, self.runner = self.engine.scheduler, self.engine.runner
        self.cache = self.runner.cache
        if service.facts["kernels"] == "torch" and dtype == "auto":
            pytest.skip("there are no native kernels here, and torch's have tests of their own")
        assert self.scheduler.index.pool.total_blocks == 10
        assert self.runner.exact
        if warm:
            self.scheduler.tiers = open_tiers(
                self.scheduler.index,
                self.cache,
                fingerprint=block_fingerprint("warm", self.cache, tiles=""),
                block_bytes=self.cache.layout.block_bytes,
                warm_bytes=64 << 20,
                disk_path=None,
                disk_bytes=0,
                clock=time.monotonic,
                wall=time.time,
            )
        self.tiers = self.scheduler.tiers
        # on a model as tiny as this computing may be the cheaper way; here reading costs no time at all
        self.tiers._clock = self.tiers._fetcher.clock = lambda: 0.0
        self._told = threading.Event()
        self.tiers.notify(self._told.set)
        self._asked = 0
        self._rows: list[Tensor] = []
        self._forward = self.runner.forward
        self.runner.forward = self._watched

    def _watched(self, schedule: Schedule) -> Tensor:
        logits: Tensor = self._forward(schedule)
        self._rows.append(logits.clone())
        return logits

    def ask(self, prompt: tuple[int, ...], **more: Any) -> Answer:
        self._asked += 1
        request = GenerationRequest(id=f"r{self._asked}", prompt=prompt, sampling=ANSWER, **more)
        sequence = self.scheduler.add(request, now=time.monotonic())
        self._rows.clear()
        blocks: list[bytes] = []
        while self.scheduler.busy:
            if sequence.blocks and sequence.generated == 1 and not blocks:
                blocks = [bytes(self.cache.export_block(block)) for block in sequence.blocks[:7]]
            self.engine.step()
        return Answer(torch.cat(self._rows), sequence, blocks)

    def push_out(self) -> None:
        """Others need the pool; what they leave is worth nothing."""
        self.ask(OTHER, salt="other", ttl_s=0.0)
        assert self.scheduler.index.lookup(TOKENS, "") == 0

    def settle(self) -> None:
        """Until all that is worth it was written."""
        while self.tiers.idle(now=time.monotonic()) or self.tiers.cold._writing:
            assert self._told.wait(60)
            self._told.clear()

    def close(self) -> None:
        self.tiers.close(now=time.monotonic(), until=time.monotonic() + 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # heads as the native kernels want them
    return TinyLlama(hidden=128).write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["float32", "bfloat16", "auto"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Those of torch's kernels; `auto` is what the native ones make of it, where there are any."""
    return str(request.param)


@pytest.fixture
def desks(folder: Path, dtype: str) -> Iterator[Any]:
    made: list[Desk] = []

    def desk(**more: Any) -> Desk:
        made.append(Desk(folder, dtype, **more))
        return made[-1]

    yield desk
    for one in made:
        one.close()


def from_tiers(answer: Answer) -> dict[str, int]:
    return {name: tokens for name, tokens in answer.sequence.tier_tokens.items() if tokens}


def test_cold_hit_memory_disk_and_restart_give_the_same_bits(desks: Any, tmp_path: Path) -> None:
    plain = desks()
    cold = plain.ask(TOKENS)
    assert from_tiers(cold) == {}
    hit = plain.ask(TOKENS)
    assert from_tiers(hit) == {"hot": 7 * BLOCK}
    assert hit.equals(cold)

    warm = desks(warm=True)
    assert warm.ask(TOKENS).equals(cold)
    warm.push_out()
    restored = warm.ask(TOKENS)
    assert from_tiers(restored) == {"warm": 7 * BLOCK}
    assert restored.equals(cold)

    disk = desks(disk=tmp_path / "kv")
    assert disk.ask(TOKENS).equals(cold)
    disk.settle()
    disk.push_out()
    read = disk.ask(TOKENS)
    assert from_tiers(read) == {"cold": 7 * BLOCK}
    assert read.equals(cold)
    disk.close()

    again = desks(disk=tmp_path / "kv")
    restarted = again.ask(TOKENS)
    assert from_tiers(restarted) == {"cold": 7 * BLOCK}
    assert restarted.equals(cold)
    assert from_tiers(again.ask(TOKENS)) == {"hot": 7 * BLOCK}


def test_every_length_of_what_is_found_below_gives_the_same_bits(
    desks: Any, tmp_path: Path
) -> None:
    plain = desks()
    cold = plain.ask(TOKENS)
    disk = desks(disk=tmp_path / "kv")
    disk.ask(TOKENS)
    disk.settle()
    chain = disk.scheduler.index.chain(TOKENS, "")
    for known in range(6, 0, -1):
        disk.push_out()
        disk.tiers.forget([chain[known]])
        answer = disk.ask(TOKENS)
        assert from_tiers(answer) == {"cold": known * BLOCK}
        assert answer.equals(cold), f"{known} blocks"
        disk.settle()


def test_a_longer_prompt_that_begins_alike_finds_what_was_written(
    desks: Any, tmp_path: Path
) -> None:
    longer = TOKENS[: 4 * BLOCK] + OTHER[: 3 * BLOCK + 1]
    cold = desks().ask(longer)
    disk = desks(disk=tmp_path / "kv")
    disk.ask(TOKENS)
    disk.settle()
    disk.push_out()
    answer = disk.ask(longer)
    assert from_tiers(answer) == {"cold": 4 * BLOCK}
    assert answer.equals(cold)


def test_a_block_that_was_hit_by_a_flipped_bit_is_computed_anew(desks: Any, tmp_path: Path) -> None:
    cold = desks().ask(TOKENS)
    disk = desks(disk=tmp_path / "kv")
    disk.ask(TOKENS)
    disk.settle()
    disk.push_out()
    third = disk.tiers.cold.shelf.get(disk.scheduler.index.chain(TOKENS, "")[2])
    with (tmp_path / "kv" / "0" / "blocks").open("r+b") as file:
        file.seek(third.place * disk.tiers.cold.file.geometry.slot_bytes + 1000)
        before = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([before[0] ^ 4]))
    answer = disk.ask(TOKENS)
    assert from_tiers(answer) == {"cold": 2 * BLOCK}
    assert answer.equals(cold)
    assert disk.tiers.stats(now=0.0)["cold"]["quarantined"] == 1


def test_another_dtype_finds_nothing_of_this_one(folder: Path, tmp_path: Path) -> None:
    disk = Desk(folder, "float32", disk=tmp_path / "kv")
    disk.ask(TOKENS)
    disk.close()
    other = Desk(folder, "bfloat16", disk=tmp_path / "kv")
    assert from_tiers(other.ask(TOKENS)) == {}
    other.close()


@pytest.mark.parametrize("found", [True, False])
def test_another_process_reads_what_this_one_wrote(
    folder: Path, tmp_path: Path, dtype: str, *, found: bool
) -> None:
    disk = Desk(folder, dtype, disk=tmp_path / "kv")
    cold = disk.ask(TOKENS)
    disk.close()
    code = (
        "import sys, hashlib; from pathlib import Path\n"
        "from tests.numerics.test_tiers_are_exact import *\n"
        "disk = Desk(Path(sys.argv[1]), sys.argv[2], disk=Path(sys.argv[3]))\n"
        "answer = disk.ask(TOKENS)\n"
        "print(answer.sequence.tier_tokens['hot'], answer.sequence.tier_tokens.get('cold', 0),\n"
        "      hashlib.sha256(answer.logits.numpy().tobytes()).hexdigest()); disk.close()"
    )
    where = tmp_path / ("kv" if found else "elsewhere")
    command = [sys.executable, "-c", code, str(folder), dtype, str(where)]
    told = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    digest = hashlib.sha256(cold.logits.numpy().tobytes()).hexdigest()
    assert told.split() == ["0", str(7 * BLOCK if found else 0), digest]
