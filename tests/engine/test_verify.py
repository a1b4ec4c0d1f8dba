"""A block that is not what it should be is found, forgotten, and never answered with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.request import GenerationRequest, SamplingParams, Sequence
from engine.spans import Schedule, Span
from engine.verify import Evidence, Witness
from tests.kit.engine_here import BLOCK, EngineHere, engine_here
from tests.kit.tiny_model import TinyLlama

QUESTION = "What would be different if one number of what was kept were another?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama().write(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def engine(model: Path, **options: Any) -> AsyncIterator[EngineHere]:
    async with engine_here(model, **options) as here:
        assert here.service.verifier is not None
        yield here


async def spoil(here: EngineHere, number: int) -> None:
    """Change one bit of block `number` of the kept question, deep in the last layer."""

    def flip(scheduler: Any) -> None:
        entries = scheduler.index._entries
        (first,) = (e for e in entries.values() if e.parent == scheduler.index.root(""))
        entry = first
        for _ in range(number):
            (child,) = list(entry.children)[:1]
            entry = entries[child]
        cache: Any = here.service.engine.runner
        blob = bytearray(cache.cache.export_block(entry.block))
        blob[-2] ^= 1
        cache.cache.import_block(entry.block, bytes(blob))

    await here.service.engine.ask(flip)


async def verify_counts(here: EngineHere) -> tuple[int, int]:
    counts = (await here.stats())["verify"]
    return counts["verified"], counts["mismatched"]


async def test_what_agrees_is_said_to_and_costs_nothing_that_was_kept(model: Path) -> None:
    async with engine(model) as here:
        first = await here.chat(QUESTION)
        kept = (await here.stats())["blocks"]["cached"]
        checked = await here.chat(QUESTION, kv={"verify": True})
        assert checked["kv_receipt"]["verified"] is True
        assert checked["kv_receipt"]["computed"] == checked["usage"]["prompt_tokens"]
        assert checked["choices"] == first["choices"]
        assert "verified" not in (await here.chat(QUESTION))["kv_receipt"]
        assert await verify_counts(here) == (1, 0)
        assert (await here.stats())["blocks"]["cached"] == kept


@pytest.mark.parametrize("number", [0, 2])
async def test_a_spoiled_block_is_found_told_and_forgotten(
    model: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(model) as here:
        truth = await here.chat(QUESTION)
        await spoil(here, number)
        checked = await here.chat(QUESTION, kv={"verify": True})
        assert checked["kv_receipt"]["verified"] is False
        assert checked["choices"] == truth["choices"], "the answer is the recomputed one"
        assert await verify_counts(here) == (1, 1)
        (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
        assert f"KV differs from token {number * BLOCK} on" in record.getMessage()
        body = {"messages": [{"role": "user", "content": QUESTION}]}
        assert (await here.kv("lookup", **body))["hit_tokens"] == number * BLOCK
        assert (await here.chat(QUESTION))["choices"] == truth["choices"]
        again = await here.chat(QUESTION, kv={"verify": True})
        assert again["kv_receipt"]["verified"] is True


async def test_a_disk_that_cannot_be_told_costs_neither_the_answer_nor_the_check(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(model, kv_disk_path=str(tmp_path / "disk")) as here:
        truth = await here.chat(QUESTION)
        await spoil(here, 0)
        tiers = here.service.engine.scheduler.tiers
        assert tiers is not None
        assert tiers.cold is not None

        def broken(*_: object) -> int:
            raise OSError("it cannot be told")

        with monkeypatch.context() as patched:
            patched.setattr(tiers.cold, "forget", broken)
            checked = await here.chat(QUESTION, kv={"verify": True})
        assert checked["kv_receipt"]["verified"] is False
        assert checked["choices"] == truth["choices"]
        assert "may have kept what the pool forgot (it cannot be told)" in caplog.text


async def test_without_asking_a_spoiled_block_goes_unnoticed(model: Path) -> None:
    """Else the tests above would prove nothing."""
    async with engine(model) as here:
        truth = await here.chat(QUESTION)
        await spoil(here, 0)
        assert (await here.chat(QUESTION))["choices"] != truth["choices"]


async def test_streams_and_several_choices_are_verified_too(model: Path) -> None:
    async with engine(model) as here:
        await here.chat(QUESTION)
        messages = [{"role": "user", "content": QUESTION}]
        body = {"messages": messages, "max_tokens": 3, "n": 2, "stream": True}
        more = {"stream_options": {"include_usage": True}, "kv": {"verify": True}}
        url = f"{here.url}/v1/chat/completions"
        async with here.session.post(url, json={**body, **more}) as response:
            assert '"verified":true' in await response.text()
        prompts = {"prompt": [QUESTION, QUESTION + "!"], "kv": {"verify": True}, "max_tokens": 1}
        async with here.session.post(f"{here.url}/v1/completions", json=prompts) as response:
            assert (await response.json())["kv_receipt"]["verified"] is True
        assert await verify_counts(here) == (3, 0)


async def test_a_share_is_verified_behind_everybodys_back(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draws = iter([0.0, 0.6, 0.0])
    async with engine(model, verify_share=0.5, draw=lambda: next(draws)) as here:
        verifier = here.service.verifier
        assert verifier is not None

        async def settled() -> tuple[int, int]:
            if verifier._behind is not None:
                await asyncio.wait([verifier._behind])
            return verifier.verified, verifier.mismatched

        await here.chat(QUESTION)  # nothing was reused: no draw
        await here.chat(QUESTION)
        assert await settled() == (1, 0)
        await here.chat(QUESTION)  # 0.6: not this time
        assert await settled() == (1, 0)
        await spoil(here, 1)
        await here.chat(QUESTION)
        assert await settled() == (2, 1)
        assert "KV differs from token 16 on" in caplog.text
        assert not verifier._witness._watched


async def test_only_one_is_checked_at_a_time(model: Path) -> None:
    async with engine(model, verify_share=1.0, draw=lambda: 0.5) as here:
        verifier = here.service.verifier
        assert verifier is not None
        tokens = tuple(range(3, 60))
        for _ in range(3):
            verifier.served(tokens, "", hit_tokens=16)
        assert verifier._behind is not None
        await asyncio.wait([verifier._behind])
        assert verifier.stats() == {"verified": 1, "mismatched": 0, "skipped": 2}


async def test_where_nothing_is_exact_nothing_is_compared(model: Path) -> None:
    async with engine(model) as here:
        verifier = here.service.verifier
        assert verifier is not None
        verifier._exact = False
        await here.chat(QUESTION)
        checked = await here.chat(QUESTION, kv={"verify": True})
        assert "verified" not in checked["kv_receipt"]
        assert checked["kv_receipt"]["hot"] > 0
        assert await verify_counts(here) == (0, 0)


async def test_who_leaves_is_watched_no_more(model: Path) -> None:
    async with engine(model) as here:
        verifier = here.service.verifier
        assert verifier is not None
        messages = [{"role": "user", "content": QUESTION}]
        body = {"messages": messages, "max_tokens": 500, "stream": True, "kv": {"verify": True}}
        async with here.session.post(f"{here.url}/v1/chat/completions", json=body) as response:
            await response.content.readline()
        while here.service.engine._sinks:  # noqa: ASYNC110 - the server notices by itself
            await asyncio.sleep(0.001)
        assert not verifier._witness._watched


def test_the_first_difference_counts() -> None:
    one = Evidence((b"a", b"b"), b"x")
    assert one.differs_at(Evidence((b"a", b"b"), b"x")) is None
    assert one.differs_at(Evidence((b"a", b"c"), b"y")) == 1
    assert one.differs_at(Evidence((b"a", b"b"), b"y")) == 2


def test_a_witness_takes_down_the_last_row_of_a_watched_prompt_and_nothing_else() -> None:
    def sequence(name: str) -> Sequence:
        request = GenerationRequest(id=name, prompt=(1,) * 9, sampling=SamplingParams())
        return Sequence(request=request, serial=0, tokens=[1] * 9, blocks=[5, 6, 7])

    read: list[int] = []

    def block(number: int) -> bytes:
        read.append(number)
        return bytes([number])

    witness: Witness[list[bytes]] = Witness(block, lambda logits, row: logits[row], block_tokens=4)
    one, other = sequence("one"), sequence("other")
    spans = (Span(other, 8, 9, sample=True), Span(one, 0, 9, sample=True))
    witness.saw(Schedule(spans), [b"0", b"1"])
    assert read == []
    witness.watch("one")
    witness.saw(Schedule((Span(one, 0, 4, sample=False),)), [])
    assert witness.take("one") is None
    witness.watch("one")
    witness.saw(Schedule(spans), [b"0", b"1"])
    assert repr(witness) == "Witness(1 watched)"
    seen = witness.take("one")
    assert read == [5, 6]
    witness.watch("one")
    witness.saw(Schedule(spans), [b"0", b"2"])
    after = witness.take("one")
    assert seen is not None
    assert after is not None
    assert seen.blocks == after.blocks
    assert seen.differs_at(after) == 2
    assert witness.take("one") is None
