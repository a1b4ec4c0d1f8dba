"""Which of several equal backends should compute a prompt: the one that knows its beginning.

A prompt is a chain of chunk hashes, each covering everything before it. For every backend there is a
memory of the chains it was sent, as large as its KV cache is believed to be and forgotten in the
order of use; the longest known beginning wins. Load is bounded: a backend that was given clearly
more new work than its fellows of late is passed over, so that a hot prefix spreads to a second one.
The work of a prompt is what was not known of it, and fades as newer work comes.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

CHUNK_BYTES: Final = 512
"""Of the prompt's text: about a hundred tokens."""
CHUNK_TOKENS: Final = 100
HASH_BYTES: Final = 8
BOUND: Final = 1.25
"""How much more than the mean a backend may have been given and still be chosen."""
FADE: Final = 20_000.0
"""Chunks of new work, of all backends, in which the memory of work fades to 1/e."""
NEGLIGIBLE: Final = 1
"""Chunks in common that are no reason to prefer a backend: half the world begins the same way."""

Chain = Sequence[int]


def chain_of(root: str, pieces: Iterable[bytes]) -> list[int]:
    """The chain of a prompt: one number for each whole chunk of all its ``pieces`` together.

    ``root`` keeps apart what must not share, such as models and salts.
    """
    text = b"".join(pieces)
    link = blake2b(root.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
    chain = []
    for start in range(0, len(text) - CHUNK_BYTES + 1, CHUNK_BYTES):
        chunk = text[start : start + CHUNK_BYTES]
        link = blake2b(link + chunk, digest_size=HASH_BYTES).digest()
        chain.append(int.from_bytes(link, "big"))
    return chain


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, by its name, and how many chunks of the prompt it is believed to know."""

    name: str
    known: int


class Affinity:
    """What each backend was sent. ``capacity``: chunks that a backend's KV cache holds, by name."""

    def __init__(self, capacity: dict[str, int], *, bound: float = BOUND) -> None:
        self._capacity = dict(capacity)
        self._bound = bound
        self._known: dict[str, OrderedDict[int, None]] = {name: OrderedDict() for name in capacity}
        self._work = dict.fromkeys(capacity, 0.0)

    def choose(self, chain: Chain, among: Sequence[str]) -> Choice:
        """The best of ``among``, which must not be empty. Changes nothing."""
        return self.rank(chain, among)[0]

    def rank(
        self, chain: Chain, among: Sequence[str], *, favourite: str | None = None
    ) -> list[Choice]:
        """All of ``among``, the best first; who is over the bound comes last. Changes nothing.

        ``favourite`` goes first while it is within the bound. Of equals, the order given stands.
        """
        mean = sum(self._work[name] for name in among) / len(among)
        most = self._bound * mean + len(chain)

        def merit(choice: Choice) -> tuple[bool, bool, int, float]:
            able = self._work[choice.name] <= most
            reason = self._reason(choice) if able else 0
            return able, able and choice.name == favourite, reason, -self._work[choice.name]

        choices = [Choice(name, self._leading(name, chain)) for name in among]
        return sorted(choices, key=merit, reverse=True)

    def sent(self, name: str, chain: Chain) -> None:
        """The backend computes this prompt now."""
        known = self._known[name]
        new = len(chain) - self._leading(name, chain)
        for link in chain:
            known[link] = None
            known.move_to_end(link)
        while len(known) > self._capacity[name]:
            known.popitem(last=False)
        fading = 1.0 - min(1.0, new / FADE)
        for other in self._work:
            self._work[other] *= fading
        self._work[name] += new

    def forget(self, name: str) -> None:
        """The backend has lost its cache: it was restarted."""
        self._known[name].clear()

    def resize(self, name: str, capacity: int) -> None:
        """The backend's KV cache holds so many chunks, as it says itself."""
        self._capacity[name] = capacity

    def _leading(self, name: str, chain: Chain) -> int:
        known = self._known[name]
        return next((at for at, link in enumerate(chain) if link not in known), len(chain))

    @staticmethod
    def _reason(choice: Choice) -> int:
        return choice.known if choice.known > NEGLIGIBLE else 0

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {len(known)}" for name, known in self._known.items())
        return f"<Affinity {held}>"
