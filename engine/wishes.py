"""What the gateway asks beside an answer: the member `kv` of a call, and the bodies of `/kv/*`.

    salt         who may share the KV; `base: {salt, messages | characters | tokens}` puts a beginning of
                 the prompt under another one: so many messages (the last of them cut to `characters`),
                 characters of a text, or token ids
    priority, ttl_s, floor, ceiling    `engine.kv.retention`
    session      a name of the conversation: what its next turn leaves behind goes first
    quota_bytes  how much the salt may keep from now on
    own_salts    others that the asker could have used as well, for an explanation
    verify       compute without reuse as well, and compare
    lane, reuse  who goes first; neither read nor feed what is kept

No HTTP, no torch. Unknown members are ignored, so that newer gateways work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, get_args

from engine.fields import Fields
from engine.kv.retention import Wish
from engine.request import Lane, Priority, Tier

LONGEST_S: Final = 1e9
MOST_BYTES: Final = 1 << 62
MOST_OWN_SALTS: Final = 8
MOST_TOKENS: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class BaseWish:
    """How much of the prompt's beginning is under a salt of its own. One or two of the three are set."""

    salt: str
    messages: int | None = None
    characters: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class KvWish:
    """The member `kv` of a call. What it leaves out has the value that changes nothing."""

    salt: str = ""
    priority: Priority = "medium"
    ttl_s: float = math.inf
    lane: Lane = "interactive"
    reuse: bool = True
    base: BaseWish | None = None
    floor: Tier | None = None
    ceiling: Tier = "cold"
    session: str | None = None
    quota_bytes: int | None = None
    own_salts: tuple[str, ...] = ()
    verify: bool = False


def parse_kv(value: object, *, lane: Lane = "interactive") -> KvWish:
    """The member `kv`. Raises `RequestError` naming the member."""
    if value is None:
        return KvWish(lane=lane)
    fields = Fields(value, "kv.")
    return KvWish(
        salt=fields.text("salt", "") or "",
        priority=fields.choice("priority", "medium", get_args(Priority)),
        ttl_s=fields.number("ttl_s", math.inf, 0, LONGEST_S),
        lane=fields.choice("lane", lane, get_args(Lane)),
        reuse=fields.boolean("reuse", default=True),
        base=parse_base(fields, "kv.base."),
        floor=fields.choice("floor", None, get_args(Tier)),
        ceiling=fields.choice("ceiling", "cold", get_args(Tier)),
        session=fields.text("session", None),
        quota_bytes=fields.integer("quota_bytes", 0, MOST_BYTES),
        own_salts=fields.texts("own_salts", most=MOST_OWN_SALTS),
        verify=fields.boolean("verify", default=False),
    )


def parse_base(fields: Fields, where: str = "base.") -> BaseWish | None:
    """The member `base`. Raises `RequestError` naming the member."""
    if "base" not in fields:
        return None
    base = Fields(fields.raw("base"), where)
    salt = base.text("salt", None)
    if salt is None:
        base.fail("salt", "is missing", "missing_field")
    wish = BaseWish(
        salt,
        messages=base.integer("messages", 1, MOST_TOKENS),
        characters=base.integer("characters", 1, MOST_TOKENS),
        tokens=base.integer("tokens", 1, MOST_TOKENS),
    )
    if wish.messages is wish.characters is wish.tokens is None:
        base.fail("messages", "or characters or tokens is needed", "missing_field")
    return wish


def parse_retain(fields: Fields) -> Wish:
    """What a body of `/kv/retain` wants changed. Raises `RequestError` naming the member."""
    pin = fields.boolean("pin", default=False) if "pin" in fields else None
    if "pin_s" in fields and not pin:
        fields.fail("pin_s", "needs pin to be true")
    return Wish(
        priority=fields.choice("priority", None, get_args(Priority)),
        ttl_s=fields.number("ttl_s", 0, 0, LONGEST_S) if "ttl_s" in fields else None,
        pin=pin,
        pin_s=fields.number("pin_s", math.inf, 0, LONGEST_S),
        floor=fields.choice("floor", None, (*get_args(Tier), "none")),
        ceiling=fields.choice("ceiling", None, get_args(Tier)),
    )
