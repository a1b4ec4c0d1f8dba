"""A model whose numbers are digests of what its blocks really hold, so that one wrong byte is heard.

The "keys and values" of a token are eight bytes: a digest of those of the token before, *read from the block
it is handed*, of the token and of its position. The "logits" of a row are a digest of all of them, read
from the pool again. A block that is stale, foreign, half written or handed to two sequences changes every
token that is said afterwards; nothing is compared on the way, as a real model would not either.

A token is drawn with dice that depend on how often they were thrown, so a throw too many is heard as well.
"""

from __future__ import annotations

import hashlib

from engine.kv.blob import Bytes
from engine.request import GenerationRequest, Pick, Sequence
from engine.spans import Schedule

END = 0
_WORD = 8  # bytes of a token's keys and values
_ENDS_ONE_IN = 31


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=_WORD).digest()


def _kept(before: bytes, token: int, position: int) -> bytes:
    return _digest(before, token.to_bytes(4, "big"), position.to_bytes(4, "big"))


def _drawn(logits: bytes, seed: int | None, throw: int, words: int) -> int:
    number = int.from_bytes(_digest(logits, repr((seed, throw)).encode()), "big")
    return END if number % _ENDS_ONE_IN == 0 else 1 + number // _ENDS_ONE_IN % words


def solo(request: GenerationRequest, *, words: int = 4, ends: bool = True) -> list[int]:
    """What a request alone on a fresh engine says. `END` is not said, but where nothing `ends`."""
    kept: list[bytes] = []

    def take(token: int) -> None:
        kept.append(_kept(kept[-1] if kept else b"", token, len(kept)))

    for token in request.prompt:
        take(token)
    said: list[int] = []
    while len(said) < request.sampling.max_tokens:
        token = _drawn(_digest(*kept), request.sampling.seed, len(said), words)
        if ends and token == END:
            break
        said.append(token)
        take(token)
    return said


class HashingModel:
    """Runner and sampler in one, over a pool of `blocks`; says `words` different tokens and `END`."""

    def __init__(self, *, blocks: int, block_tokens: int, words: int = 4) -> None:
        self.words = words
        self.block_bytes = block_tokens * _WORD
        self.block_tokens = block_tokens
        self.pool = bytearray(b"?" * (blocks * self.block_bytes))

    # -- Runner and Sampler --------------------------------------------------------------------------

    def close(self) -> None:
        """It has no threads."""

    def forward(self, schedule: Schedule, /) -> list[bytes]:
        logits = []
        for span in schedule.spans:
            one = span.sequence
            for position in range(span.start, span.stop):
                before = self._read(one, position - 1) if position else b""
                at = self._place(one, position)
                self.pool[at : at + _WORD] = _kept(before, one.tokens[position], position)
            if span.sample:
                logits.append(_digest(self._history(one, span.stop)))
        return logits

    def pick(self, logits: list[bytes], schedule: Schedule, /) -> list[Pick]:
        picks: list[Pick] = []
        sampled = [span for span in schedule.spans if span.sample]
        for span, row in zip(sampled, logits, strict=True):
            one = span.sequence
            if span.guess is not None and span.guess != picks[-1].token:
                picks.append(Pick(-1))
                continue
            throw = one.sampler_state or 0
            one.sampler_state = throw + 1
            picks.append(Pick(_drawn(row, one.sampling.seed, throw, self.words)))
        return picks

    # -- the pool ------------------------------------------------------------------------------------

    def _place(self, one: Sequence, position: int) -> int:
        block, offset = divmod(position, self.block_tokens)
        return one.blocks[block] * self.block_bytes + offset * _WORD

    def _read(self, one: Sequence, position: int) -> bytes:
        at = self._place(one, position)
        return bytes(self.pool[at : at + _WORD])

    def _history(self, one: Sequence, stop: int) -> bytes:
        blocks = one.blocks[: -(-stop // self.block_tokens)]
        return b"".join(map(self.export_block, blocks))[: stop * _WORD]

    def export_block(self, block: int, /) -> bytes:
        """What a block holds."""
        return bytes(self.pool[block * self.block_bytes : (block + 1) * self.block_bytes])

    def import_block(self, block: int, blob: Bytes, /) -> None:
        """What a tier held is in this block now."""
        self.pool[block * self.block_bytes : (block + 1) * self.block_bytes] = blob
