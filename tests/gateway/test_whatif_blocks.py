"""KV in blocks: what fits, what is found, and what the measures beside it say."""

from gateway.whatif_blocks import KvIndex, Room, scored
from policies.replay import Learned, LeastRecentlyUsed, Optimal, Score, replay
from tests.kit.journals import hashed, missed

TURNS = [[1, 2], [1, 3], [1, 2, 4], [9], [1, 2, 4, 6]]


def test_room_is_whole_blocks() -> None:
    assert Room(tokens=1000.0, memory_bytes=None, block_tokens=128.0, token_bytes=1).blocks == 7


def test_every_order_is_replayed_with_the_same_room() -> None:
    found = scored(TURNS, 3)
    assert found.ours == replay(Learned(3), TURNS)
    assert found.lru == replay(LeastRecentlyUsed(3), TURNS)
    assert found.optimum == replay(Optimal(3, TURNS), TURNS)
    assert found.unbounded.hits == 6
    known = Score(lookups=1, hits=1)
    assert scored(TURNS, 3, unbounded=known).unbounded is known
    shown = found.as_dict()
    assert (shown["capacity_blocks"], shown["lookups"]) == (3, 12)
    assert shown["unbounded"] == {"hits": 6, "hit_rate": 0.5, "evictions": 0}


def test_an_index_says_how_many_tokens_of_a_prompt_are_there() -> None:
    index = KvIndex(Room(tokens=1000.0, memory_bytes=None, block_tokens=100.5, token_bytes=1))
    first, second = [hashed("a"), hashed("b")], [hashed("a"), hashed("b"), hashed("c")]
    assert index.computes(missed(1.0, "x", blocks=first)) == 0
    assert index.computes(missed(2.0, "x", blocks=second)) == 201
    assert index.computes(missed(3.0, "x")) == 0
    assert [len(chain) for chain in index.chains] == [2, 3]
