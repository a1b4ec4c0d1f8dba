"""What a worker knows of the processes beside it: news, their numbers, the engines."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from gateway.backends.embedded import RETRY_STARTING_S, EngineView
from gateway.backends.replicas import Watcher
from gateway.numbers import Numbers
from gateway.store.base import StoreError
from gateway.store.sharing import Listener
from gateway.workers.channel import Channel, ChannelError

HEARD_WITHIN_S: Final = 5.0
"""How long all others may take to apply a message; who told it learns that they have not."""
COUNTED_WITHIN_S: Final = 2.0


class FarEngines:
    """The supervisor's engines, as they were last said to be; see ``replicas.Engines``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._views: dict[str, EngineView] = {}
        self._heard_s = clock()
        self._watchers: list[Watcher] = []

    def hear(self, views: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in what :func:`told` made of the views."""
        before, self._heard_s = self._views, self._clock()
        self._views = {name: EngineView(**view) for name, view in views.items()}
        for name, view in self._views.items():
            known = before.get(name)
            if known is None or (known.state, known.address) != (view.state, view.address):
                for watcher in self._watchers:
                    watcher(name)

    def view(self) -> Mapping[str, EngineView]:
        """How each is and where; the time to ask again has gone on since that was said."""
        gone_s = self._clock() - self._heard_s
        return {
            name: replace(view, retry_s=max(view.retry_s - gone_s, RETRY_STARTING_S))
            for name, view in self._views.items()
        }

    def watch(self, watcher: Watcher) -> None:
        """Have ``watcher`` called for each change."""
        self._watchers.append(watcher)

    async def start(self) -> None:
        """The supervisor does."""

    async def stop(self) -> None:
        """The supervisor does."""

    def __repr__(self) -> str:
        shown = " ".join(f"{name}={view.state}" for name, view in self._views.items())
        return f"<FarEngines {shown}>"


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
        self, number: int, *, kv_secret: bytes, channel: Channel, engines: FarEngines | None
    ) -> None:
        self.number = number
        self.kv_secret = kv_secret
        self.engines = engines
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


def told(views: Mapping[str, EngineView]) -> dict[str, Any]:
    """Views as JSON, for :meth:`FarEngines.hear`."""
    return {name: asdict(view) for name, view in views.items()}
