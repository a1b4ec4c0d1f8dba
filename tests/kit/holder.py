"""What the scheduler keeps for a sequence, for tests of the prefix index alone."""

from __future__ import annotations

from engine.kv.blocks import BlockPool
from engine.kv.prefix import PrefixIndex, Retention
from engine.kv.salts import Salt

P = 4
MEDIUM = Retention()


class Holder:
    """What the scheduler would keep for one sequence. Raises MemoryError when there are no blocks."""

    def __init__(
        self, index: PrefixIndex, tokens: list[int], salt: Salt = "", *, now: float = 0.0
    ) -> None:
        self.index, self.tokens, self.salt = index, tokens, salt
        self.chain: list[bytes] = []
        index.extend_chain(self.chain, tokens, salt)
        self.shared = index.match(self.chain, tokens, salt)
        index.hold(self.shared)
        need = -(-len(tokens) // index.block_tokens) - len(self.shared)
        own = index.take(need, now=now, salt=salt)
        if own is None:
            index.release(self.shared, retention=MEDIUM, now=0.0)
            raise MemoryError
        self.blocks = self.shared + own

    def publish(self, retention: Retention = MEDIUM) -> list[int | None]:
        results = []
        for number in range(len(self.tokens) // self.index.block_tokens):
            block = self.index.publish(
                self.chain,
                number,
                self.tokens,
                self.blocks,
                salt=self.salt,
                retention=retention,
            )
            results.append(block)
            if block is None:
                break
            self.blocks[number] = block
        return results

    def leave(self, *, now: float = 0.0, retention: Retention = MEDIUM) -> None:
        self.index.release(self.blocks, retention=retention, now=now)
        self.blocks = []


def make(blocks: int = 8) -> PrefixIndex:
    return PrefixIndex(BlockPool(blocks), block_tokens=P, fingerprint=b"model")


def kept(index: PrefixIndex, tokens: list[int], salt: Salt = "", **how: object) -> None:
    holder = Holder(index, tokens, salt)
    holder.publish(Retention(**how) if how else MEDIUM)  # type: ignore[arg-type]
    holder.leave(retention=Retention(**how) if how else MEDIUM)  # type: ignore[arg-type]
