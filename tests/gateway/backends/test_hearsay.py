"""Workers tell each other what they have sent where."""

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.backends.group import Group
from gateway.backends.hearsay import share
from gateway.backends.held import Held
from gateway.flights import Tasks
from gateway.router import Router, Served
from gateway.store.base import StoreError
from gateway.store.sharing import Listener
from tests.kit.entries import asked
from tests.kit.scripted_backend import ScriptedBackend

LONG = "All about herons, which stand in the shallow water. " * 60


class Air:
    """News between those who listen."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.told = 0
        self.broken = False

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        assert topic == "routing"
        self.told += 1
        if self.broken:
            raise StoreError("not every worker has heard")
        for listener in self.listeners[1:]:  # the first one tells
            await listener(message)

    def listen(self, topic: str, listener: Listener) -> None:
        assert topic == "routing"
        self.listeners.append(listener)


class Workers:
    """Two routers of the same two backends, of which the first tells."""

    def __init__(self) -> None:
        self.air, self.tasks = Air(), Tasks()
        self.groups: list[Group] = []
        self.held: list[Held] = []
        for _ in range(2):
            backends = [Served(ScriptedBackend(name=name), ["m"]) for name in "ab"]
            router = Router(backends, {})
            share(router, self.air, self.tasks)
            self.groups += router.groups.values()
            self.held.append(router.held)

    async def ask(self, text: str, kv_cache: Any = None) -> str:
        """Ask the first worker; who computed it."""
        candidate = self.groups[0].candidates(*asked(text, kv_cache))[0]
        async for _ in candidate.run(*asked(text, kv_cache)):
            pass
        await asyncio.gather(*self.tasks._running)
        return candidate.name


async def test_what_one_worker_sent_the_other_one_knows() -> None:
    workers = Workers()
    homes = {number: await workers.ask(f"{number}: {LONG}") for number in range(4)}
    assert set(homes.values()) == {"a", "b"}
    for number, home in homes.items():
        candidate = workers.groups[1].candidates(*asked(f"{number}: {LONG}"))[0]
        assert candidate.name == home


async def test_a_cache_key_is_known_to_the_other_one_too() -> None:
    workers, keyed = Workers(), {"cache_key": "case:7", "enabled": True}
    await workers.ask("?")
    home = await workers.ask("?", keyed)
    assert [workers.groups[1].candidates(*asked("!", keyed))[0].name for _ in range(3)] == [
        home
    ] * 3


async def test_what_leaves_nothing_to_remember_is_not_told() -> None:
    workers = Workers()
    await workers.ask("short")
    assert workers.air.told == 0


async def test_what_cannot_be_told_is_lost_and_nothing_else() -> None:
    workers = Workers()
    workers.air.broken = True
    await workers.ask(LONG)
    assert workers.air.told == 1
    assert repr(workers.groups[1]._affinity) == "<Affinity a 0, b 0>"


def test_without_groups_nobody_listens() -> None:
    air = Air()
    share(Router([Served(ScriptedBackend(), ["m"])], {}), air, Tasks())
    assert air.listeners == []


async def test_what_a_backend_holds_the_other_worker_knows() -> None:
    workers = Workers()
    here, there = workers.held
    here.note(["resp_1"], "b")
    await asyncio.gather(*workers.tasks._running)
    assert there.holder(["resp_1"]) == "b"
    assert workers.air.told == 1
