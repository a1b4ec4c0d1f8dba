"""Messages between gateways through Redis or Valkey: publish and subscribe, without losing any.

Each message has a number and is also kept in a short list; numbers start at the time, so that those of
a server that lost its data do not repeat. Who was away for a while (the server was
down, the connection broke) reads from the list what he missed when he subscribes again; when that
is not certain any more, the listeners of the topic ``MISSED`` are called.

Whoever has heard a message answers on the teller's own channel, so that ``tell`` can wait for all who
listened when it was published; one that is frozen is not waited for longer than ``patience_s``.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.store.redis_client import Script, failing_as_store
from gateway.store.sharing import MISSED, Listener

KEPT: Final = 256
"""Messages of a topic that are kept for those who were away."""
PATIENCE_S: Final = 1.0
RETRY_S: Final = 0.25
SILENCE_S: Final = 3.0
"""Who has heard nothing for so long asks the server for an answer, and listens anew without one."""

# An invalidation must also get through when the server is full.
TELL: Final = Script.of(
    """#!lua flags=allow-oom
local counter = KEYS[1]..':number'
if redis.call('EXISTS', counter) == 0 then
  local now = redis.call('TIME')
  redis.call('SET', counter, now[1]..string.format('%06d', now[2]))
end
local number = string.format('%.0f', redis.call('INCR', counter))
local message = number..' '..ARGV[1]
redis.call('RPUSH', KEYS[1]..':kept', message)
redis.call('LTRIM', KEYS[1]..':kept', -tonumber(ARGV[2]), -1)
return {number, redis.call('PUBLISH', KEYS[1], message)}
"""
)
_log = structlog.get_logger("kvgate.store")


class RedisNews:
    """See :class:`gateway.store.sharing.News`. ``token`` names this process among all."""

    def __init__(
        self,
        client: Redis,
        *,
        token: str,
        tasks: Tasks,
        namespace: str = "kvgate",
        patience_s: float = PATIENCE_S,
        silence_s: float = SILENCE_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._token = token
        self._tasks = tasks
        self._prefix = f"{namespace}:news:".encode()
        self._answers = f"{namespace}:heard:{token}".encode()
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._sleep = sleep
        self._listeners: defaultdict[bytes, list[Listener]] = defaultdict(list)
        self._last: dict[bytes, int] = {}  # the number of the last message heard, by channel
        self._telling = 0
        self._heard: Counter[str] = Counter()  # answers, by message, while we tell
        self._waiting: dict[str, asyncio.Event] = {}
        self._task: asyncio.Task[None] | None = None
        self.subscribed = asyncio.Event()

    def listen(self, topic: str, listener: Listener) -> None:
        """See :meth:`gateway.store.sharing.News.listen`."""
        self._listeners[self._prefix + topic.encode()].append(listener)
        if self._task is not None:
            self._task.cancel()  # the new one subscribes to all
        self._task = self._tasks.start(self._listen(), name="news")

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        """See :meth:`gateway.store.sharing.News.tell`."""
        channel = self._prefix + topic.encode()
        data = orjson.dumps({"from": self._token, "message": message})
        self._telling += 1  # an answer may be faster than the reply to our own command
        try:
            number, receivers = await TELL.run(self._client, channel, data, KEPT)
            others = receivers - (channel in self._listeners)
            if self.subscribed.is_set() and others > 0:
                await self._all_heard(f"{topic} {number.decode()}", others)
        finally:
            self._telling -= 1
            if not self._telling:
                self._heard.clear()

    async def _all_heard(self, name: str, others: int) -> None:
        """Wait until so many have answered, or for as long as our patience lasts."""
        changed = self._waiting[name] = asyncio.Event()
        try:
            async with asyncio.timeout(self._patience_s):
                while self._heard[name] < others:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return  # whoever listens but does not answer reads what it missed when it wakes up
        finally:
            del self._waiting[name]

    async def _listen(self) -> None:
        while not self._ended():
            try:
                async with self._client.pubsub() as pubsub:
                    await self._follow(pubsub)
            except StoreError:
                self.subscribed.clear()
            await self._sleep(RETRY_S)

    @staticmethod
    def _ended() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _follow(self, pubsub: PubSub) -> None:
        with failing_as_store():
            await pubsub.subscribe(self._answers, *self._listeners)
            for _ in range(1 + len(self._listeners)):
                await pubsub.get_message(timeout=PATIENCE_S)  # the server's word that it is done
        for channel in self._listeners:
            await self._catch_up(channel)
        self.subscribed.set()
        asked = False
        # Before Python 3.12 asyncio.wait_for, which the client uses, can lose a cancellation.
        while not self._ended():
            with failing_as_store():
                message = await pubsub.get_message(timeout=self._silence_s)
                if message is None and not asked:
                    await pubsub.ping()
            if message is None:
                if asked:
                    raise StoreError("redis: the connection that listens is dead")
                asked = True
                continue
            asked = False
            if message["type"] != "message":
                continue
            channel, data = message["channel"], message["data"]
            if channel == self._answers:
                self._answered(data.decode())
            else:
                await self._hear(channel, data)

    async def _catch_up(self, channel: bytes) -> None:
        """Hear what was told while nobody listened; the first time there is nothing to miss."""
        with failing_as_store():
            at = int(await self._client.get(channel + b":number") or 0)
            kept: list[Any] = await self._client.lrange((channel + b":kept").decode(), 0, -1)
        known = self._last.setdefault(channel, at)
        first = int(kept[0].split(b" ", 1)[0]) if kept else at + 1
        if at < known or first > known + 1:
            self._last[channel] = at
            await self._pass_on(self._prefix + MISSED.encode(), {})
        for data in kept:
            await self._hear(channel, data)

    async def _hear(self, channel: bytes, data: bytes) -> None:
        try:
            number_word, _, raw = data.partition(b" ")
            number, told = int(number_word), orjson.loads(raw)
            teller, message = told["from"], told["message"]
        except (ValueError, KeyError, TypeError):
            _log.warning("news not understood", channel=channel.decode(errors="replace"))
            return
        if number <= self._last.get(channel, 0):
            return
        self._last[channel] = number
        if teller != self._token and await self._pass_on(channel, message):
            topic = channel.removeprefix(self._prefix).decode()
            answers = self._answers.removesuffix(self._token.encode()).decode() + teller
            with failing_as_store():
                await self._client.publish(answers, f"{topic} {number}")

    async def _pass_on(self, channel: bytes, message: Mapping[str, Any]) -> bool:
        """Whether all our listeners have heard it; one that fails does not silence the others."""
        all_heard = True
        for listener in self._listeners[channel]:
            try:
                await listener(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the listening
                all_heard = False
                _log.warning("news not heard", error=type(error).__name__, reason=str(error)[:200])
        return all_heard

    def _answered(self, name: str) -> None:
        if self._telling:
            self._heard[name] += 1
            if (changed := self._waiting.get(name)) is not None:
                changed.set()

    def __repr__(self) -> str:
        state = "subscribed" if self.subscribed.is_set() else "not subscribed"
        return f"<RedisNews {len(self._listeners)} topics, {state}>"
