"""What one worker has sent where, told to the others: a conversation's next turn may reach any of them.

Told behind the caller's back, and lost where it cannot be told: then a prefix is computed twice.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from gateway.backends.group import Group, Sent
from gateway.backends.held import Held
from gateway.flights import Tasks
from gateway.router import Router
from gateway.store.base import StoreError
from gateway.store.sharing import News

_TOPIC: Final = "routing"


def share(router: Router, news: News, tasks: Tasks) -> None:
    """Have each group tell what it sends, and hear what the same group of another worker does."""
    groups = {group.name: group for group in router.groups.values()}
    for group in groups.values():
        group.told = partial(_tell, group, news, tasks)
    if groups:
        router.held.told = partial(_tell_held, news, tasks)
        news.listen(_TOPIC, partial(_hear, groups, router.held))


def _tell(group: Group, news: News, tasks: Tasks, sent: Sent) -> None:
    if not sent.chain and sent.key is None:
        return  # nothing to remember
    message = {
        "group": group.name,
        "name": sent.name,
        "chain": list(sent.chain),
        "key": sent.key.hex() if sent.key is not None else None,
    }
    tasks.start(_told(news, message), name="routing told")


def _tell_held(news: News, tasks: Tasks, ids: Sequence[str], name: str) -> None:
    tasks.start(_told(news, {"ids": list(ids), "name": name}), name="holder told")


async def _told(news: News, message: Mapping[str, Any]) -> None:
    with suppress(StoreError):
        await news.tell(_TOPIC, message)


async def _hear(groups: Mapping[str, Group], held: Held, message: Mapping[str, Any]) -> None:
    if (ids := message.get("ids")) is not None:
        held.hear(ids, message["name"])
        return
    key = message["key"]
    sent = Sent(message["name"], message["chain"], bytes.fromhex(key) if key else None)
    groups[message["group"]].hear(sent)
