"""Who waits for whose blocks, and what of them is findable when."""

from dataclasses import replace

import pytest

from engine.kv.blocks import BlockPool
from engine.kv.missed import Missed
from engine.kv.prefix import PrefixIndex
from engine.kv.salts import Layered
from engine.request import GenerationRequest, Lane, SamplingParams, Sequence
from engine.sharing import Sharing

P = 4
PROMPT = list(range(1, 14))  # three blocks and a token


class Bench:
    """A pool of sixteen blocks; sequences are numbered as they come."""

    def __init__(self, *, enabled: bool = True, exact_decode: bool = True) -> None:
        self.index = PrefixIndex(BlockPool(16), block_tokens=P)
        self.sharing = Sharing(self.index, enabled=enabled, exact_decode=exact_decode)
        self.count = 0

    def sequence(self, lane: Lane = "interactive", *, scored: bool = False) -> Sequence:
        self.count += 1
        request = GenerationRequest(
            id=f"r{self.count}",
            prompt=tuple(PROMPT),
            sampling=SamplingParams(),
            lane=lane,
            score_prompt=scored,
        )
        return Sequence(request=request, serial=self.count, tokens=list(PROMPT))

    def start(self, sequence: Sequence) -> None:
        """Give it its blocks and let it claim them, as if admitted."""
        self.sharing.find(sequence)
        sequence.blocks = self.index.take(4, now=0.0) or []
        sequence.prefill_stop = len(PROMPT)
        self.sharing.claim(sequence, from_block=0)

    def compute(self, sequence: Sequence, stop: int) -> None:
        sequence.computed = stop
        self.sharing.publish(sequence, now=0.0)


def test_a_second_equal_prompt_awaits_each_block_until_it_is_published() -> None:
    bench = Bench()
    first, second = bench.sequence(), bench.sequence()
    bench.start(first)
    assert bench.sharing.find(second) == []
    second.awaits = bench.sharing.awaited(second, 0)
    assert second.awaits == second.chain[0]
    assert bench.sharing.waits(second)
    bench.compute(first, P)
    assert not bench.sharing.waits(second)
    assert bench.sharing.find(second) == first.blocks[:1]
    assert bench.sharing.awaited(second, 1) == second.chain[1]
    bench.compute(first, len(PROMPT))
    assert bench.sharing.find(second) == first.blocks[:3]
    assert bench.sharing.awaited(second, 3) is None, "the rest is its own"
    assert repr(bench.sharing).startswith("Sharing(claims=0 PrefixIndex(blocks=3")
    bench.sharing.check_integrity([first])


def test_nobody_waits_for_a_lower_lane_or_when_every_row_is_wanted() -> None:
    bench = Bench()
    warm, now, scored = (
        bench.sequence("warm"),
        bench.sequence("interactive"),
        bench.sequence("warm", scored=True),
    )
    bench.start(warm)
    bench.sharing.find(now)
    bench.sharing.find(scored)
    assert bench.sharing.awaited(now, 0) is None
    assert bench.sharing.awaited(scored, 0) is None


def test_who_leaves_gives_up_its_claims_and_its_blocks() -> None:
    bench = Bench()
    first, second = bench.sequence(), bench.sequence()
    bench.start(first)
    bench.compute(first, P + 1)
    bench.sharing.find(second)
    assert bench.sharing.awaited(second, 1) is not None
    bench.sharing.release(first, now=0.0)
    assert first.blocks == []
    assert bench.sharing.awaited(second, 1) is None
    assert repr(bench.index.pool) == "BlockPool(total=16 free=15 held=0 idle=1)"


def test_what_decode_wrote_stays_private_unless_it_is_exact() -> None:
    for exact, found in ((True, 3), (False, 1)):
        bench = Bench(exact_decode=exact)
        one = bench.sequence()
        bench.start(one)
        one.prefill_stop = P + 1
        bench.compute(one, len(PROMPT))
        assert len(bench.sharing.find(bench.sequence())) == found


def test_nothing_is_shared_when_it_is_off() -> None:
    bench = Bench(enabled=False)
    one = bench.sequence()
    bench.start(one)
    bench.compute(one, len(PROMPT))
    assert bench.sharing.find(bench.sequence()) == []
    assert bench.sharing.awaited(bench.sequence(), 0) is None
    assert one.chain == []


def test_a_sequence_is_told_what_it_missed_once() -> None:
    bench = Bench()
    first, second = bench.sequence(), bench.sequence()
    bench.start(first)
    bench.sharing.begin(first, found=0)
    assert first.missed == Missed("never_seen", 0)
    bench.compute(first, len(PROMPT))
    bench.sharing.begin(second, found=len(bench.sharing.find(second)))
    assert second.missed is None
    first.preemptions = 1
    bench.sharing.begin(first, found=3)
    assert first.missed == Missed("never_seen", 0), "found again is its own"


@pytest.mark.parametrize("how", [{"enabled": False}, {"scored": True}])
def test_who_does_not_look_is_told_so(how: dict[str, bool]) -> None:
    bench = Bench(enabled=how.get("enabled", True))
    one = bench.sequence(scored=how.get("scored", False))
    bench.sharing.begin(one, found=0)
    assert one.missed == Missed("reuse_off", 0)


def test_a_request_brings_its_quota_its_floor_and_its_conversation() -> None:
    bench = Bench()
    one = bench.sequence()
    one.request = replace(
        one.request, salt=Layered("base", "ann", 1), quota_bytes=2, session="c", floor="warm"
    )
    bench.start(one)
    bench.sharing.begin(one, found=0)
    bench.compute(one, len(PROMPT))
    assert one.published == 3, "a block of the base is not the asker's"
    bench.sharing.release(one, now=0.0)
    assert bench.index.keeper.quotas.blocks_kept == {"base": 1, "ann": 2}
    path = bench.index.path(one.chain, PROMPT, one.request.salt, most=3)
    assert {entry.retention.floor for entry in path} == {"warm"}
    assert len(bench.index.sessions) == 1
    shorter = bench.sequence()
    shorter.request = replace(one.request, id="r9", prompt=(*PROMPT[:4], *PROMPT))
    shorter.tokens = list(shorter.request.prompt)
    bench.index.hold(bench.sharing.find(shorter))
    bench.sharing.begin(shorter, found=1)
    bench.index.take(bench.index.pool.free_blocks + 1, now=0.0)
    assert bench.index.stats().evicted_by == {"superseded": 1}


def test_no_name_of_a_session_reaches_another_salts() -> None:
    bench = Bench()

    def name(salt: str, session: str) -> str:
        one = bench.sequence()
        one.request = replace(one.request, salt=salt, session=session)
        return bench.sharing._session(one)

    names = {name("a\nb", "c"), name("a", "b\nc"), name("a", "\nb\nc"), name("", "a\nb\nc")}
    assert len(names) == 4
