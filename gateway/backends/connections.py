"""Connections to backends: which are used again, and a fresh one where an idle one was closed.

A server may close an idle connection in the moment in which the gateway sends a request on it. The
server has no work from that request, so the gateway sends it once more, on a fresh connection. The
first try costs no retry budget, and says nothing about the backend's health.

The same error on a fresh connection is no such race: the backend got the request and broke off. After
each of the two the gateway opens a connection for each request for a while, so that a storm of resets
is not taken for a series of races.
"""

import io
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from gateway.sse import EventTooLarge
from policies.outcome import Cause

NETWORK_ERRORS: Final = (aiohttp.ClientError, OSError, EventTooLarge)
FRESH_FOR_S: Final = 10.0
"""How long no connection is used again after one broke."""

_ONE_PART_BYTES: Final = 1024 * 1024

_WANTS_FRESH: ContextVar[bool] = ContextVar("wants_fresh", default=False)
_WAS_USED: ContextVar[bool] = ContextVar("was_used", default=False)


class Connector(aiohttp.TCPConnector):
    """A pool that knows which connections have carried a request before."""

    def __init__(self, *, keepalive_s: float) -> None:
        super().__init__(limit=0, keepalive_timeout=keepalive_s)
        self._carried: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """See aiohttp. Within :func:`send` a second try takes no connection of the pool."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None  # it was made for us just now
            used = protocol in self._carried
            if not (used and _WANTS_FRESH.get()):
                break
            connection.close()  # its fellows in the pool are as old
        _WAS_USED.set(used)
        self._carried.add(protocol)
        return connection


class Requests:
    """The requests to one backend. ``clock`` is monotonic, in seconds."""

    def __init__(self, session: aiohttp.ClientSession, clock: Callable[[], float]) -> None:
        self.session = session
        self._clock = clock
        self._fresh_until_s: float | None = None

    async def send(
        self, method: str, url: str, *, data: bytes | None = None, **options: Any
    ) -> aiohttp.ClientResponse:
        """The head of the answer. Raises: what aiohttp raises."""
        options["allow_redirects"] = False
        if not self._wants_fresh():
            _WAS_USED.set(False)
            try:
                return await self.session.request(method, url, data=_in_parts(data), **options)
            except aiohttp.ClientConnectorError:
                raise  # nothing was sent
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                raced = _WAS_USED.get() and not self._wants_fresh()
                self._fresh_until_s = self._clock() + FRESH_FOR_S
                if not raced:
                    raise
        wish = _WANTS_FRESH.set(True)
        try:
            return await self.session.request(method, url, data=_in_parts(data), **options)
        finally:
            _WANTS_FRESH.reset(wish)

    def _wants_fresh(self) -> bool:
        return self._fresh_until_s is not None and self._clock() < self._fresh_until_s


def cause_of(error: BaseException) -> Cause:
    """What the error says about the backend."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return "unreachable"
    return "answered" if isinstance(error, EventTooLarge) else "cut"


def why_broken(error: BaseException) -> str:
    """What to tell of it, behind the name of the backend."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot be reached"
    if isinstance(error, EventTooLarge):
        return "sent an event over the size limit"
    return "broke off the connection"


def _in_parts(data: bytes | None) -> bytes | io.BytesIO | None:
    """A large body as a file, which aiohttp sends in parts: others have their turn in between."""
    return data if data is None or len(data) <= _ONE_PART_BYTES else io.BytesIO(data)
