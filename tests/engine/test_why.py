"""Why a prompt was not found: the truth, and nothing of others."""

from collections.abc import Collection, Sequence

from engine.kv.blocks import BlockPool
from engine.kv.keeper import Kept
from engine.kv.missed import Missed
from engine.kv.prefix import PrefixIndex
from engine.kv.retention import Retention
from engine.kv.salts import Layered, Salt
from engine.kv.why import why_missed
from tests.kit.holder import P, kept

TOKENS = list(range(1, 14))  # three blocks and a token


class Bench:
    """An index whose clock the test moves."""

    def __init__(self, blocks: int = 16) -> None:
        self.time = 100.0
        self.index = PrefixIndex(BlockPool(blocks), block_tokens=P, clock=lambda: self.time)

    def why(
        self, tokens: Sequence[int] = TOKENS, salt: Salt = "", own_salts: Sequence[str] = ()
    ) -> Missed | None:
        chain = self.index.chain(tokens, salt)
        found = len(self.index.match(chain, tokens, salt))
        return why_missed(self.index, chain, tokens, salt, found=found, own_salts=own_salts)


def test_nothing_is_explained_when_all_was_found() -> None:
    bench = Bench()
    kept(bench.index, TOKENS)
    assert bench.why() is None


def test_a_prompt_below_one_block_could_not_be_found() -> None:
    bench = Bench()
    assert bench.why(TOKENS[:P]) == Missed("below_one_block", 0)
    assert bench.why(TOKENS[: P + 1]) == Missed("never_seen", 0)


def test_what_goes_on_differently_diverges_at_its_token() -> None:
    bench = Bench()
    kept(bench.index, [*TOKENS[:5], 77, 78, 79])
    assert bench.why() == Missed("diverged", 5)
    assert bench.why([*TOKENS[:4], 66, 66, 66, 66, 0]) == Missed("never_seen", 4)
    assert bench.why([*TOKENS[:2], 66, 66, 0]) == Missed("diverged", 2)
    kept(bench.index, TOKENS[:8])
    assert bench.why() == Missed("never_seen", 8)


def test_what_was_evicted_says_when_and_by_what() -> None:
    bench = Bench(4)
    kept(bench.index, TOKENS[:12])
    bench.time = 130.0
    bench.index.take(2, now=0.0)
    bench.time = 160.0
    assert bench.why() == Missed("evicted", 8, "capacity", 30.0)


def test_what_expired_and_what_was_wished_gone_have_words_of_their_own() -> None:
    bench = Bench(3)
    kept(bench.index, TOKENS[:12], priority="high", expires_at=5.0)
    bench.index.take(1, now=6.0)
    assert bench.why() == Missed("expired", 8, "ttl", 0.0)
    bench.index.invalidate()
    assert bench.why() == Missed("invalidated", 0, "invalidated", 0.0)


def test_what_is_computed_again_is_forgotten_no_more() -> None:
    bench = Bench()
    kept(bench.index, TOKENS)
    bench.index.invalidate()
    kept(bench.index, TOKENS)
    assert bench.why() is None
    assert len(bench.index.keeper.forgotten) == 0


def test_nothing_is_said_of_another_salt_unless_it_is_ones_own() -> None:
    bench = Bench()
    kept(bench.index, TOKENS, "ann")
    assert bench.why(salt="bob") == Missed("never_seen", 0)
    assert bench.why(salt="bob", own_salts=["bob", "carol"]) == Missed("never_seen", 0)
    assert bench.why(salt="bob", own_salts=["ann"]) == Missed("other_salt", 0)
    bench.index.invalidate()
    assert bench.why(salt="bob") == Missed("never_seen", 0)


def test_nothing_is_said_of_what_others_asked_under_the_same_base() -> None:
    bench = Bench()
    kept(bench.index, TOKENS, Layered("base", "ann", 1))
    other = [*TOKENS[:6], 99, 99, 99]
    assert bench.why(other, Layered("base", "ann", 1)) == Missed("diverged", 6)
    assert bench.why(other, Layered("base", "bob", 1)) == Missed("never_seen", 4)
    assert bench.why(other, "base") == Missed("never_seen", 4)


class OnDisk:
    """What is below a pool, as far as it is asked here."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()

    def evicted(self, kept: Kept, /, *, now: float) -> None:
        self.keys.add(kept.identity.key)

    def published(self, key: bytes, wanted: Retention, /) -> None:
        pass

    def narrowed(self, key: bytes, wanted: Retention, /) -> None:
        pass

    def forget(self, keys: Collection[bytes], /, *, salt: str | None = None) -> int:
        self.keys -= {*keys}
        return 0

    def forget_all(self) -> int:
        return self.forget(self.keys)

    def holds(self, key: bytes, /) -> bool:
        return key in self.keys


def test_what_lies_below_the_pool_and_was_not_read_was_declined() -> None:
    bench = Bench(4)
    bench.index.below = OnDisk()
    kept(bench.index, TOKENS[:12])
    bench.index.take(2, now=0.0)
    assert bench.why() == Missed("declined", 8)
    bench.index.below.forget_all()
    assert bench.why() == Missed("evicted", 8, "capacity", 0.0)
