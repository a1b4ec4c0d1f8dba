"""The contract of a backend.

Every accepted call ends in exactly one ``Ending``, whatever happens on the way: a backend
that cannot be reached, refuses, or breaks off in the middle yields ``Failed`` and does not
raise. Only cancellation passes through, and it must free what the call held.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gateway.chunks import Piece
from policies.call import Call
from policies.eviction import Priority
from policies.plan import Plan


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An answer passed on as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Computes(Protocol):
    """What can compute an answer: a backend, or a share of somebody's work."""

    @property
    def name(self) -> str:
        """The operator's name for it; a label in logs and metrics."""
        ...

    def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """Compute: an ``Opening``, then ``Chunk`` s or one ``Whole``, then one ``Ending``.

        A refusal before the first piece yields its ``Failed`` alone. A ``Comment`` may come anywhere
        before the ending: it counts as nothing, and leaves at once.
        """
        ...


class Backend(Computes, Protocol):
    """One place that computes answers."""

    async def models(self) -> list[dict[str, Any]]:
        """The model objects it serves, in OpenAI's shape. Raises: BackendFault."""
        ...

    async def forward(self, method: str, path_qs: str, body: bytes) -> Forwarded:
        """Pass a request on that is no model call. Raises: BackendFault."""
        ...

    async def invalidate_kv(self, salt: str | None) -> int:
        """Drop the KV blocks under ``salt`` (``None``: all); returns how many tokens went.

        0 where the backend has no such control. Raises: BackendFault.
        """
        ...

    async def kv_stats(self) -> dict[str, Any] | None:
        """What the backend says of its KV cache; ``None`` where it says nothing."""
        ...


@dataclass(frozen=True, slots=True)
class KnownPrefix:
    """Of a prompt's tokens, so many leading ones are in this backend's KV cache now.

    ``tiers`` says where, ``missed`` why no more: as the backend says it, where it does.
    """

    backend: str
    tokens: int
    hit_tokens: int
    tiers: Mapping[str, Any] | None = None
    missed: Mapping[str, Any] | None = None


@runtime_checkable
class LooksUp(Protocol):
    """A backend that can say what it knows of a prompt without computing anything."""

    async def lookup_kv(self, call: Call, plan: Plan) -> KnownPrefix | None:
        """What is known of the call's prompt under the plan's salt; ``None``: nobody can say.

        Raises: BackendFault.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A backend that may be asked, in its turn: for ``model``, which may be a fallback."""

    backend: str
    model: str
    state: str


@runtime_checkable
class Foresees(Protocol):
    """What chooses among backends and can say how it would, which changes nothing."""

    def foreseen(self, call: Call, plan: Plan) -> Sequence[Place]:
        """Who would be asked, in this order."""
        ...


@runtime_checkable
class Prefills(Protocol):
    """A backend that can compute a prompt ahead of its questions; not every one can."""

    async def prefill_kv(
        self, messages: Sequence[Mapping[str, Any]], *, salt: str, priority: Priority, ttl_s: float
    ) -> int:
        """Compute the KV of ``messages`` under ``salt``, or keep alive what is there of it.

        Yields to everybody else. Returns the prompt's tokens; 0 where the backend has no such
        control. Raises: BackendFault.
        """
        ...
