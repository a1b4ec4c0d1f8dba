"""What a worker knows of the processes beside it: news, their numbers, the engine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from gateway.backends.embedded import RETRY_STARTING_S, EngineView, State
from gateway.numbers import Numbers
from gateway.store.base import StoreError
from gateway.store.sharing import Listener
from gateway.workers.channel import Channel, ChannelError

HEARD_WITHIN_S: Final = 5.0
"""How long all others may take to apply a message; who told it learns that they have not."""
COUNTED_WITHIN_S: Final = 2.0


class FarEngine:
    """The supervisor's engine, as it was last said to be. Stands in for an ``EngineProcess``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._view = EngineView("starting")
        self._heard_s = clock()

    def hear(self, view: Mapping[str, Any]) -> None:
        """Take in what :func:`asdict` made of a view."""
        self._view, self._heard_s = EngineView(**view), self._clock()

    @property
    def state(self) -> State:
        """How it is."""
        return self._view.state

    def view(self) -> EngineView:
        """How it is and where; the time to ask again has gone on since that was said."""
        left_s = self._view.retry_s - (self._clock() - self._heard_s)
        return replace(self._view, retry_s=max(left_s, RETRY_STARTING_S))

    def base_url(self) -> str:
        """Where its OpenAI routes are. Raises: BackendFault 503 while it is not ready."""
        return self.view().base_url()

    async def start(self) -> None:
        """The supervisor does."""

    async def stop(self) -> None:
        """The supervisor does."""

    def __repr__(self) -> str:
        return f"<FarEngine {self.state}>"


class ChannelNews:
    """News between the workers of one supervisor; see :class:`gateway.store.sharing.News`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._listeners: dict[str, list[Listener]] = {}

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        """Returns when each living worker has applied it. Raises: StoreError when one has not."""
        try:
            await self._channel.ask(
                "tell", {"topic": topic, "message": dict(message)}, within_s=2 * HEARD_WITHIN_S
            )
        except ChannelError as error:
            raise StoreError(f"not every worker has heard of {topic!r}: {error}") from None

    def listen(self, topic: str, listener: Listener) -> None:
        """Have ``listener`` called for what others tell."""
        self._listeners.setdefault(topic, []).append(listener)

    async def hear(self, news: Mapping[str, Any]) -> None:
        """Call the listeners, one after the other."""
        for listener in self._listeners.get(news["topic"], ()):
            await listener(news["message"])


class Team:
    """The others, for the worker with this number."""

    def __init__(
        self, number: int, *, kv_secret: bytes, channel: Channel, engine: FarEngine | None
    ) -> None:
        self.number = number
        self.kv_secret = kv_secret
        self.engine = engine
        self.news = ChannelNews(channel)
        self._channel = channel

    async def others(self) -> Numbers | None:
        """What the other workers have counted, dead ones included; None when nobody can say."""
        try:
            return Numbers.of(await self._channel.ask("others", within_s=COUNTED_WITHIN_S))
        except ChannelError:
            return None

    def __repr__(self) -> str:
        return f"<Team of worker {self.number}: {self._channel!r}>"


def told(view: EngineView) -> dict[str, Any]:
    """A view as JSON, for :meth:`FarEngine.hear`."""
    return asdict(view)
