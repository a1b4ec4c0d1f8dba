"""Reading what ``kvgate replay`` replays: the gateway's own journal, or Mooncake's traces.

Which of the two a file is, its content says. ``.gz`` is unpacked; with ``FILE`` its rotated elder
siblings ``FILE.1``, ``FILE.2`` … are read too. Several files are put together in the order of time.
"""

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any, Final, get_args

import orjson

from gateway.journal_lines import VERSION
from policies.call import Endpoint
from policies.eviction import Priority
from policies.outcome import Forwarded, Level
from policies.plan import Lane
from policies.rules import Match, TierName

MOONCAKE_BLOCK_TOKENS: Final = 512


class TraceError(Exception):
    """Not a trace that can be read; the message names the file, the line and what is wrong."""


@dataclass(slots=True)
class Recorded:
    """A call of the journal; see :meth:`gateway.journal_lines.Lines.call` for the fields."""

    at: float
    order: int = 0
    took_s: float = 0.0
    endpoint: Endpoint = "chat"
    tenant: str = ""
    scope: str = ""
    model: str = ""
    backend: str | None = None
    lane: Lane = "interactive"
    level: Level = "none"
    hit: bool = False
    status: int = 200
    stale: bool = False
    collapsed: bool = False
    forwarded: Forwarded | None = None
    reason: str | None = None
    tier: TierName | None = None
    tokens_saved: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    hit_tokens: int = 0
    miss_tokens: int = 0
    preload: bool = False
    cost_s: float = 0.0
    key: str | None = None
    read: bool = False
    store: bool = False
    match: Match = "exact"
    plan_tier: TierName = "warm"
    ttl_s: float = 0.0
    priority: Priority = "medium"
    max_age_s: float | None = None
    by: dict[str, str] = field(default_factory=dict)
    parts: bool = False
    stored_at: float | None = None
    entry_ttl_s: float = 0.0
    bytes: int = 0
    beside_bytes: int = 0
    bytes_sent: int = 0
    blocks: list[str] = field(default_factory=list)
    turn: int = 0
    conversation: str | None = None
    supersedes: str | None = None

    @property
    def computed(self) -> bool:
        """Whether a backend was asked."""
        return self.level in {"prefix", "none"}


@dataclass(slots=True)
class StoredLine:
    """An answer that was handed to the store; see :meth:`gateway.journal_lines.Lines.stored`."""

    at: float
    key: str
    order: int = 0
    tenant: str = ""
    endpoint: Endpoint = "chat"
    model: str = ""
    tier: TierName = "warm"
    priority: Priority = "medium"
    stored_at: float = 0.0
    entry_ttl_s: float = 0.0
    status: int = 200
    cost_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes: int = 0
    beside_bytes: int = 0


@dataclass(slots=True)
class ClearedLine:
    """Answers that were removed."""

    at: float
    keys: list[str]
    order: int = 0


@dataclass(slots=True)
class Begin:
    """How the gateway ran: the sections that decide, and its room for KV."""

    at: float
    config: dict[str, Any]
    journal: int = VERSION
    worker: int | None = None
    block_bytes: int = 512
    shares: dict[str, int] = field(default_factory=dict)
    backend_kv_tokens: int = 0
    engine_kv_bytes: int = 0


@dataclass(slots=True)
class Prompt:
    """A request of Mooncake's traces: its blocks of 512 tokens, its length in tokens, when (s)."""

    at: float
    tokens: int
    blocks: list[int]
    answer_tokens: int = 0


Event = Recorded | StoredLine | ClearedLine


@dataclass(frozen=True, slots=True)
class JournalTrace:
    """What one or more journals say, in order of time. ``begin`` is the latest one."""

    begin: Begin
    events: Sequence[Event]
    several_configs: bool

    @property
    def span_s(self) -> float:
        """From the first event to the last."""
        return _span_s(self.events)


@dataclass(frozen=True, slots=True)
class PromptTrace:
    """Prompts in their order."""

    prompts: Sequence[Prompt]

    @property
    def span_s(self) -> float:
        """From the first prompt to the last."""
        return _span_s(self.prompts)


def _span_s(events: Sequence["Event | Prompt"]) -> float:
    times = [event.at for event in events]
    return max(times) - min(times) if times else 0.0


Trace = JournalTrace | PromptTrace
_KINDS: Final[Mapping[str, type[Any]]] = {
    "begin": Begin,
    "call": Recorded,
    "stored": StoredLine,
    "cleared": ClearedLine,
}
_NAMES: Final = {kind: frozenset(one.name for one in fields(kind)) for kind in _KINDS.values()}


def read(paths: Iterable[Path]) -> Trace:
    """Read all files, each once. Raises: TraceError, also for a file that is not there."""
    named = {file.resolve(): file for path in paths for file in with_siblings(path)}
    read_files = [_read_file(file) for file in named.values()]
    prompts = [one for found in read_files for one in found if isinstance(one, Prompt)]
    others = [one for found in read_files for one in found if not isinstance(one, Prompt)]
    if prompts and others:
        raise TraceError("journals and prompt traces cannot be replayed together")
    if prompts:
        return PromptTrace(prompts)
    begins = [one for one in others if isinstance(one, Begin)]
    events = [one for one in others if not isinstance(one, Begin)]
    if not begins or not any(isinstance(one, Recorded) for one in events):
        raise TraceError("there is no call in it")
    events.sort(key=lambda event: (event.at, event.order))
    latest = max(begins, key=lambda one: one.at)
    return JournalTrace(latest, events, any(one.config != latest.config for one in begins))


def with_siblings(path: Path) -> list[Path]:
    """The file after those that it was rotated into, the oldest first."""
    found = [path]
    for number in count(1):
        older = path.with_name(f"{path.name}.{number}")
        if not older.exists():
            return found[::-1]
        found.append(older)
    raise AssertionError("count ends never")


def _read_file(path: Path) -> list[Event | Begin | Prompt]:
    """Half a line is passed over where one can be: at the end, or before a process began anew."""
    found: list[Event | Begin | Prompt] = []
    torn, ends = None, True
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                ends = line.endswith(b"\n")
                try:
                    one = _parsed(line)
                except (ValueError, TypeError, KeyError) as error:
                    said = TraceError(f"{path}:{number}: {_why(error)}")
                    if torn is not None or not isinstance(error, orjson.JSONDecodeError):
                        raise torn or said from None
                    torn = said
                else:
                    if torn is not None and not isinstance(one, Begin):
                        raise torn
                    torn = None
                    found.append(one)
        if torn is not None and (ends or not found):
            raise torn
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"{path}: {reason}") from None
    return found


def _parsed(line: bytes) -> Event | Begin | Prompt:
    data = orjson.loads(line)
    if not isinstance(data, dict):
        raise TypeError("not an object")
    if "hash_ids" in data:
        return _prompt(data)
    kind = _KINDS.get(data.pop("kind", None))
    if kind is None:
        raise ValueError("neither a line of kvgate's journal nor a request with hash_ids")
    if data.get("journal", VERSION) != VERSION:
        raise ValueError(f"a journal of version {data['journal']}; this kvgate reads {VERSION}")
    # Fields of a later version are passed over: it says so where they change the meaning.
    known = {name: value for name, value in data.items() if name in _NAMES[kind]}
    made: Event | Begin = kind(**known)
    _check(made)
    return made


def _prompt(data: Mapping[str, Any]) -> Prompt:
    blocks = data["hash_ids"]
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise TypeError("hash_ids must be a list of whole numbers")
    tokens = data.get("input_length", len(blocks) * MOONCAKE_BLOCK_TOKENS)
    return Prompt(
        at=_number(data.get("timestamp", 0), "timestamp") / 1000,
        tokens=int(_number(tokens, "input_length")),
        blocks=blocks,
        answer_tokens=int(_number(data.get("output_length", 0), "output_length")),
    )


def _check(line: Event | Begin) -> None:
    """What a wrong type of would only be noticed later, far from its line."""
    _number(line.at, "at")
    for name in _NUMBERS[type(line)]:
        _number(getattr(line, name), name)
    for name in _TEXTS[type(line)]:
        value = getattr(line, name)
        if value is not None and not (isinstance(value, str) and _is_hash(value)):
            raise TypeError(f"{name} must be 16 hexadecimal characters")
    for name, words in _WORDS.items():
        if getattr(line, name, None) not in words:
            raise ValueError(f"{name} is none of {', '.join(sorted(filter(None, words)))}")
    hashes = line.blocks if isinstance(line, Recorded) else getattr(line, "keys", [])
    if not isinstance(hashes, list) or not all(map(_is_hash, hashes)):
        raise TypeError("a list of hashes holds something else")


_WORDS: Final[Mapping[str, frozenset[str | None]]] = {
    "level": frozenset({None, *get_args(Level)}),
    "endpoint": frozenset({None, *get_args(Endpoint)}),
    "tier": frozenset({None, *get_args(TierName)}),
    "plan_tier": frozenset({None, *get_args(TierName)}),
    "priority": frozenset({None, *get_args(Priority)}),
    "match": frozenset({None, *get_args(Match)}),
}
_NUMBERS: Final[Mapping[type[Any], tuple[str, ...]]] = {
    kind: tuple(
        one.name for one in fields(kind) if one.type in {int, float} and one.name != "journal"
    )
    for kind in _KINDS.values()
}
_TEXTS: Final[Mapping[type[Any], tuple[str, ...]]] = {
    Begin: (),
    Recorded: ("key", "supersedes"),
    StoredLine: ("key",),
    ClearedLine: (),
}


def _is_hash(value: object) -> bool:
    try:
        return isinstance(value, str) and len(bytes.fromhex(value)) == 8
    except ValueError:
        return False


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number")
    return value


def _why(error: Exception) -> str:
    if isinstance(error, orjson.JSONDecodeError):
        return "not JSON"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    text = str(error)
    missing = "required positional argument"
    return f"{text.rpartition(': ')[2]} is missing" if missing in text else text
