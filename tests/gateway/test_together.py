"""Inputs asked for at the same time, in whatever company: each is computed once."""

import asyncio
from typing import Any

import pytest

from gateway.chunks import Whole
from gateway.errors import ClientFault
from gateway.pipeline import Answer as PipelineAnswer
from gateway.pipeline import Kept
from gateway.store.base import Entry
from gateway.store.memory import MemoryStore
from gateway.together import TURN, Gathered, Together
from policies.call import MAX_INPUTS, Call
from policies.outcome import Elsewhere
from policies.plan import Plan
from tests.kit.bench import Bench, read
from tests.kit.entries import asked as asked_for
from tests.kit.scripted_backend import Gate, Script, completed, failed, opening
from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    embeddings_body,
    error_reply,
    json_reply,
    vector_of,
)
from tests.kit.service import Answer, Service, serving


async def embed(service: Service, given: Any, **wish: Any) -> Answer:
    body = {"model": "m", "input": given, "kv_cache": {"enabled": True, **wish}}
    return await service.send("POST", "/v1/embeddings", body)


def embedding(service: Service, given: Any, **wish: Any) -> "asyncio.Task[Answer]":
    return asyncio.create_task(embed(service, given, **wish))


def vectors(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer.raw
    return [datum["embedding"] for datum in answer.body["data"]]


def expected(texts: str) -> list[Any]:
    return [vector_of(text) for text in texts]


def asked(service: Service) -> list[Any]:
    return [seen.body["input"] for seen in service.upstream.seen]


def behind(gate: Gate, given: Any) -> Reply:
    """A good answer, when the gate opens."""
    return Reply((gate, *json_reply(embeddings_body({"model": "m", "input": given})).steps))


def refused_behind(gate: Gate, status: int = 400) -> Reply:
    """A refusal, when the gate opens."""
    refusal = error_reply(status, "one of these is too long", code="too_long")
    return Reply((gate, *refusal.steps), status=status)


async def test_identical_lists_at_the_same_time_are_one_call() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(behind(gate, ["a", "b"]))) as service:
        tasks = [embedding(service, ["a", "b"]) for _ in range(5)]
        await service.readers(10)
        gate.open()
        answers = await asyncio.gather(*tasks)
        assert [vectors(answer) for answer in answers] == [expected("ab")] * 5
        collapsed = ["collapsed" in answer.headers["Cache-Status"] for answer in answers]
        assert sorted(collapsed) == [False, True, True, True, True]
        assert service.upstream.calls == 1


async def test_lists_that_overlap_share_what_they_have_in_common() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(behind(gate, ["a", "b"]))) as service:
        first = embedding(service, ["a", "b"])
        await gate.reached()
        second = embedding(service, ["c", "b", "d"])
        await service.upstream.called(2)
        gate.open()
        assert vectors(await first) == expected("ab")
        answer = await second
        assert vectors(answer) == expected("cbd")
        assert answer.headers["X-Cache-Tokens-Saved"] == "3"
        assert asked(service) == [["a", "b"], ["c", "d"]]


async def test_a_single_input_reads_along_with_a_list_and_a_list_with_it() -> None:
    gates = [Gate(), Gate()]
    replies = behind(gates[0], ["a", "b"]), behind(gates[1], "c")
    async with serving(upstream=ScriptedUpstream(*replies)) as service:
        listed = embedding(service, ["a", "b"])
        await gates[0].reached()
        single = embedding(service, "c")
        await gates[1].reached()
        along = [embedding(service, "b"), embedding(service, ["c", "a"])]
        await service.readers(6)
        for gate in gates:
            gate.open()
        assert vectors(await listed) == expected("ab")
        assert vectors(await single) == expected("c")
        assert [vectors(await task) for task in along] == [expected("b"), expected("ca")]
        assert asked(service) == [["a", "b"], "c"]


async def test_a_persons_input_does_not_wait_for_the_batch_that_it_is_in() -> None:
    gate = Gate()
    replies = behind(gate, ["a", "b"]), json_reply(embeddings_body({"model": "m", "input": "b"}))
    async with serving(upstream=ScriptedUpstream(*replies)) as service:
        listed = embedding(service, ["a", "b"], batch_mode=True)
        await gate.reached()
        assert vectors(await embed(service, "b")) == expected("b")
        gate.open()
        assert vectors(await listed) == expected("ab")
        assert asked(service) == [["a", "b"], "b"]


async def left(task: "asyncio.Task[Answer]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_reads_along_gets_its_input_though_the_list_was_given_up() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(behind(gate, ["a", "b"]))) as service:
        first = embedding(service, ["a", "b"])
        await gate.reached()
        second = embedding(service, ["b"])
        await service.readers(3)
        await left(first)
        await service.readers(1)
        gate.open()
        assert vectors(await second) == expected("b")
        assert service.upstream.calls == 1
        await service.settled()
        await embed(service, ["a"])  # nobody waited for it: it was not kept
        assert asked(service) == [["a", "b"], ["a"]]


async def test_the_call_ends_when_nobody_waits_for_any_of_it() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(behind(gate, ["a", "b"]))) as service:
        tasks = [embedding(service, ["a", "b"])]
        await gate.reached()
        tasks.append(embedding(service, "a"))
        await service.readers(3)
        for task in tasks:
            await left(task)
        await service.upstream.seen[0].gone.wait()
        assert vectors(await embed(service, ["a", "b"])) == expected("ab")


async def test_what_is_preloaded_is_finished_for_nobody() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(behind(gate, ["a", "b"]))) as service:
        task = embedding(service, ["a", "b"], preload=True)
        await gate.reached()
        await left(task)
        gate.open()
        await service.settled()
        assert vectors(await embed(service, ["b", "a"])) == expected("ba")
        assert service.upstream.calls == 1


async def test_an_input_is_not_refused_for_the_company_it_was_in() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(refused_behind(gate))) as service:
        listed = embedding(service, ["a", "bad"])
        await gate.reached()
        along = [embedding(service, "a"), embedding(service, ["a"])]
        await service.readers(4)
        gate.open()
        assert (await listed).status == 400
        assert [vectors(await task) for task in along] == [expected("a")] * 2
        assert asked(service) == [["a", "bad"], "a"]
        await service.settled()
        assert (await embed(service, "a")).headers["X-Cache-Level"] == "response"
        assert vectors(await embed(service, "bad")) == [vector_of("bad")]


async def test_a_failure_of_the_backend_is_everybodys() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(refused_behind(gate, 503))) as service:
        tasks = [embedding(service, ["a", "b"])]
        await gate.reached()
        tasks.append(embedding(service, "a"))
        await service.readers(3)
        gate.open()
        assert [(await task).status for task in tasks] == [503, 503]
        assert service.upstream.calls == 1


async def test_what_was_cleared_away_meanwhile_is_answered_and_not_kept() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(behind(gate, ["a", "b"]))) as service:
        task = embedding(service, ["a", "b"], tags=["t"])
        await gate.reached()
        await service.send("POST", "/v1/cache/invalidate", {"tag": "t"})
        gate.open()
        assert vectors(await task) == expected("ab")
        await service.settled()
        await embed(service, ["a"])
        assert service.upstream.calls == 2


async def test_many_clients_with_lists_of_their_own_make_no_input_twice() -> None:
    gate = Gate()
    texts = [f"text {number}" for number in range(40)]
    async with serving(upstream=ScriptedUpstream(behind(gate, texts))) as service:
        first = embedding(service, texts)
        await gate.reached()
        others = [embedding(service, texts[start : start + 20][::-1]) for start in range(20)]
        await service.readers(40 + 20 * 20)
        gate.open()
        assert len(vectors(await first)) == 40
        for start, answer in enumerate(await asyncio.gather(*others)):
            wanted = [vector_of(text) for text in texts[start : start + 20][::-1]]
            assert vectors(answer) == wanted
        assert service.upstream.calls == 1
        assert len(service.gateway.flights) == 0


# ---- between one look-up and the next


class SlowFor(MemoryStore):
    """Stands at a gate before it says what it has under one key."""

    def __init__(self, key: bytes) -> None:
        super().__init__("warm", max_bytes=2**20)
        self.slow_key = key
        self.gate = Gate()

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        if key == self.slow_key:
            await self.gate.pass_through()
        return await super().get(key, now=now)


def one_of(given: Any) -> tuple[Call, Plan]:
    return asked_for(endpoint="embeddings", input=given)


def vector_script(given: Any) -> Script:
    return (opening(), Whole(embeddings_body({"model": "m", "input": given})), completed(3, 0))


async def single(bench: Bench, text: str) -> PipelineAnswer:
    call, plan = one_of(text)
    return await bench.pipeline.answer(call, plan, bench.backend)


async def test_what_lands_while_the_rest_is_looked_up_is_not_computed_again() -> None:
    store = SlowFor(one_of("b")[1].key)
    bench = Bench(vector_script("a"), vector_script(["b"]), store=store)
    together = Together(bench.pipeline, bench.flights)
    listed = asyncio.create_task(together.answer(*one_of(["a", "b"]), bench.backend))
    await store.gate.reached()  # "a" was not there
    await read(await single(bench, "a"))
    await bench.settled()
    store.gate.open()
    gathered = await listed
    assert isinstance(gathered, Gathered)
    with gathered:
        assert [isinstance(answer, Kept) for answer in gathered.answers] == [True, False]
    assert [run.call.body["input"] for run in bench.backend.runs] == ["a", ["b"]]
    await bench.settled()


async def test_what_is_refused_while_the_rest_is_looked_up_refuses_the_list() -> None:
    store = SlowFor(one_of("b")[1].key)
    bench = Bench([failed(400)], store=store)
    together = Together(bench.pipeline, bench.flights)
    listed = asyncio.create_task(together.answer(*one_of(["a", "b"]), bench.backend))
    await store.gate.reached()
    with pytest.raises(ClientFault):
        await single(bench, "a")
    await bench.settled()
    store.gate.open()
    refusal = await listed
    assert isinstance(refusal, Kept)
    assert (refusal.outcome.level, refusal.outcome.status) == ("negative", 400)
    assert bench.runs == 1


async def test_what_another_process_has_computed_is_looked_up_again() -> None:
    gate = Gate()
    bench = Bench((gate, Elsewhere()), vector_script(["b"]), vector_script("a"))
    together = Together(bench.pipeline, bench.flights)
    alone = asyncio.create_task(single(bench, "a"))
    await gate.reached()
    listed = asyncio.create_task(together.answer(*one_of(["a", "b"]), bench.backend))
    await bench.backend.started(2)
    gate.open()
    gathered = await listed
    assert isinstance(gathered, Gathered)
    with gathered:
        assert len(gathered.answers) == 2
        assert (await read(await alone))["data"][0]["embedding"] == vector_of("a")
    assert bench.runs == 3
    await bench.settled()


async def test_two_thousand_inputs_are_worked_on_some_at_a_time() -> None:
    """Between two turns of the loop few flights begin, and few of them hear from the backend."""
    texts = [f"text {number}" for number in range(MAX_INPUTS)]
    async with serving() as service:
        flying = service.gateway.flights._by_key
        asked = embedding(service, texts)
        steps, before = [], (0, 0)
        while not asked.done():
            await asyncio.sleep(0)
            now = len(flying), sum(bool(flight.pieces) for flight in flying.values())
            steps.append(max(abs(one - other) for one, other in zip(now, before, strict=True)))
            before = now
        assert len(vectors(await asked)) == MAX_INPUTS
        assert 0 < max(steps) <= 3 * TURN


async def test_more_inputs_than_openai_takes_are_refused_by_name() -> None:
    async with serving() as service:
        for one in ("a", [1, 2]):
            answer = await embed(service, [one] * (MAX_INPUTS + 1))
            assert (answer.status, answer.error["param"]) == (400, "input")
        assert service.upstream.calls == 0
