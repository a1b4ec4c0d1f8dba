"""Connections to backends: which are used again, and a fresh one where an idle one was closed.

A server may close an idle connection in the moment in which the gateway sends a request on it. The
server has no work from that request, so the gateway sends it once more, on a fresh connection. The
first try costs no retry budget, and says nothing about the backend's health.

The same error on a fresh connection is no such race: the backend got the request and broke off. For
a while after that, the gateway takes no error for the race.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

BREAKS_FOR_S: Final = 10.0
"""How long a broken fresh connection is remembered."""

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
        self._broke_s: float | None = None

    async def send(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        """The head of the answer. Raises: what aiohttp raises."""
        _WAS_USED.set(False)
        try:
            return await self.session.request(method, url, allow_redirects=False, **options)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if not self._lost_a_race(error):
                raise
        wish = _WANTS_FRESH.set(True)
        try:
            return await self.session.request(method, url, allow_redirects=False, **options)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            self._lost_a_race(error)
            raise
        finally:
            _WANTS_FRESH.reset(wish)

    def _lost_a_race(self, error: Exception) -> bool:
        if isinstance(error, aiohttp.ClientConnectorError):
            return False  # nothing was sent
        now_s = self._clock()
        if not _WAS_USED.get():
            self._broke_s = now_s
            return False
        return self._broke_s is None or now_s - self._broke_s > BREAKS_FOR_S
