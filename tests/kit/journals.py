"""Journals made by hand: a line each for what happened, in few words."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from gateway.config import Config
from gateway.trace import Begin, ClearedLine, Event, JournalTrace, Recorded, StoredLine
from policies.rules import Rules

KINDS = {Begin: "begin", Recorded: "call", StoredLine: "stored", ClearedLine: "cleared"}
OVERHEAD = 1200
BACKEND = {"name": "up", "base_url": "http://127.0.0.1:1", "models": ["m"]}


def hashed(name: str) -> str:
    """A name of at most eight letters as the journal has it."""
    return name.encode().ljust(8, b".").hex()


def configured(**sections: Any) -> Config:
    """A configuration with one backend."""
    return Config.model_validate({"backends": [BACKEND], **sections})


def missed(at: float, name: str, **more: Any) -> Recorded:
    """A call that was computed in a second, of 100 and 10 tokens, and may be stored."""
    return _call(at, name, {"level": "none", "reason": "cold", "forwarded": "uri-miss"} | more)


def hit(at: float, name: str, *, stored_at: float = 0.0, size: int = 800, **more: Any) -> Recorded:
    """A call that was answered with what was stored, of ``size`` bytes."""
    facts = {
        "level": "response",
        "hit": True,
        "tier": "warm",
        "stored_at": stored_at,
        "entry_ttl_s": 1800.0,
        "bytes": size,
        "beside_bytes": OVERHEAD,
        "cost_s": 1.0,
        "tokens_saved": 110,
    }
    return _call(at, name, facts | more)


def stored(at: float, name: str, *, size: int = 800, **more: Any) -> StoredLine:
    """An answer of ``size`` bytes, stored in the tier warm for half an hour."""
    facts: dict[str, Any] = {
        "model": "m",
        "stored_at": at,
        "entry_ttl_s": 1800.0,
        "cost_s": 1.0,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "bytes": size,
        "beside_bytes": OVERHEAD,
        **more,
    }
    return StoredLine(at=at, key=hashed(name), **facts)


def asked_and_stored(at: float, name: str, *, size: int = 800, **more: Any) -> list[Event]:
    """A call that was computed, and its answer a second later."""
    return [missed(at, name, **more), stored(at + 1, name, size=size)]


def _call(at: float, name: str, more: Mapping[str, Any]) -> Recorded:
    facts: dict[str, Any] = {
        "took_s": 1.0,
        "model": "m",
        "key": hashed(name),
        "read": True,
        "store": True,
        "ttl_s": 1800.0,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "tier": "warm",
        "by": {"tier": "default", "ttl_s": "tier", "priority": "tier"},
        "bytes_sent": 512,
        **more,
    }
    return Recorded(at=at, **facts)


def begun(config: Config | None = None, **more: Any) -> Begin:
    """The first line of a journal under ``config`` without jitter."""
    known = config or configured(freshness={"jitter": 0})
    sections = {
        "tiers",
        "prompt_types",
        "contexts",
        "key_prefixes",
        "freshness",
        "limits",
        "prices",
    }
    told = known.model_dump(mode="json", include=sections)
    return Begin(at=0.0, config=told, backend_kv_tokens=1_000_000, **more)


def trace_of(events: Iterable[Event], begin: Begin | None = None) -> JournalTrace:
    """A journal that was read."""
    ordered = sorted(events, key=lambda event: event.at)
    return JournalTrace(begin or begun(), ordered, several_configs=False)


def write(path: Path, events: Iterable[Event], begin: Begin | None = None) -> Path:
    """The same as a file."""
    lines = [begin or begun(), *events]
    path.write_bytes(
        b"".join(
            orjson.dumps(
                {"kind": KINDS[type(one)], **asdict(one)}, option=orjson.OPT_APPEND_NEWLINE
            )
            for one in lines
        )
    )
    return path


def rules_of(trace: JournalTrace, **tiers: Any) -> Rules:
    """The rules of the journal's configuration, with tiers changed."""
    config = dict(trace.begin.config)
    config["tiers"] = {
        name: {**tier, **tiers.get(name, {})} for name, tier in config["tiers"].items()
    }
    return Config.model_validate(config).rules(kv_secret=b"")
