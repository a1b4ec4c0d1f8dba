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

        A refusal before the first piece yields its ``Failed`` alone.
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
