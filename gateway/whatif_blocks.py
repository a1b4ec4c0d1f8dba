"""What a KV cache would have done, in blocks: ``policies.reuse`` beside LRU, the optimum and no bound.

How many blocks fit is a matter of three numbers that are said with the result: bytes of keys and values
a token, tokens a block, bytes of memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.trace import Recorded
from policies.replay import Cache, Chain, Learned, LeastRecentlyUsed, Optimal, Score, replay

DEFAULT_TOKEN_BYTES: Final = 23_040
"""Of the bundled SmolLM2-135M: 30 layers, 3 KV heads, 64 dimensions, keys and values, 2 bytes each."""
UNBOUNDED: Final = 2**60


@dataclass(frozen=True, slots=True)
class Room:
    """How much KV there is room for. ``memory_bytes`` is None where a backend says it in tokens."""

    tokens: float
    memory_bytes: int | None
    block_tokens: float
    token_bytes: int

    @property
    def blocks(self) -> int:
        """Whole blocks that fit."""
        return int(self.tokens / self.block_tokens)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Scores of the order that serves, and of its measures, on one sequence of prompts."""

    capacity: int
    ours: Score
    lru: Score
    optimum: Score
    unbounded: Score

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "capacity_blocks": self.capacity,
            "lookups": self.ours.lookups,
            **{
                name: {
                    "hits": score.hits,
                    "hit_rate": round(score.hit_rate, 6),
                    "evictions": score.evictions,
                }
                for name, score in self.by_name().items()
            },
        }

    def by_name(self) -> dict[str, Score]:
        """What each order scored."""
        return {
            "kvgate": self.ours,
            "lru": self.lru,
            "optimum": self.optimum,
            "unbounded": self.unbounded,
        }


def scored(chains: Sequence[Chain], capacity: int, *, unbounded: Score | None = None) -> Blocks:
    """Replay ``chains`` under every order; ``unbounded`` if that is known already."""
    return Blocks(
        capacity,
        ours=replay(Learned(capacity), chains),
        lru=replay(LeastRecentlyUsed(capacity), chains),
        optimum=replay(Optimal(capacity, chains), chains),
        unbounded=unbounded or replay(LeastRecentlyUsed(UNBOUNDED), chains),
    )


class KvIndex:
    """The KV cache behind a journal's calls, as :class:`gateway.whatif.KvCache` asks for it."""

    def __init__(self, room: Room) -> None:
        self.chains: list[Chain] = []
        """The prompts that were computed, in their order."""
        self._room = room
        self._cache: Cache = Learned(room.blocks)

    def computes(self, call: Recorded) -> int:
        """Tokens of the prompt that are reused; then all of it is cached."""
        if not call.blocks:
            return 0
        chain = [int(block, 16) for block in call.blocks]
        self.chains.append(chain)
        return int(self._cache.request(chain) * self._room.block_tokens)
