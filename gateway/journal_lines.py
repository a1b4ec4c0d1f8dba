"""What the journal says of a call: hashes, counts, and the operator's own names. No IO.

A line is a JSON object. ``kind`` is ``begin`` (first in each file: the configuration that decides, and
nothing secret), ``call`` (a call was answered), ``stored`` (an answer was handed to the store) or
``cleared`` (answers were removed on somebody's word). Times are unix seconds; ``order`` numbers
what one process did, for what happened at one time.

Whatever came from a client is a keyed hash, so that who has the file cannot try out guesses; the key
lies beside it (see ``journal_file``). Of a prompt there are the hashes of its *blocks*: the messages as
JSON in pieces of :data:`BLOCK_BYTES`, each hash over its piece and the hash before it, from a beginning
that is the scope and the model. The gateway has no tokenizer, so these are not the engine's blocks; but
two prompts agree in as many of them as they agree from their start, rounded down. An unfinished last
piece has no hash, as engines keep whole blocks only.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from gateway import exact_json
from gateway.config import Config, engine_names
from gateway.request_log import Answered
from gateway.store.memory import beside
from policies.call import Call
from policies.conversation import CONTEXT_OF
from policies.embeddings import is_list
from policies.freshness import EntryMeta
from policies.keys import Scope, entry_key, scope_key
from policies.plan import Plan
from policies.rules import Rules
from policies.supersession import superseded

VERSION: Final = 1
BLOCK_BYTES: Final = 512
"""Of UTF-8 JSON in a block of a prompt: about 128 tokens of English."""
MOST_BLOCKS: Final = 8192
"""Of a prompt; what follows has no hashes."""
HASH_BYTES: Final = 8
REMEMBERED: Final = 1024
"""Hashes of each kind that are not made anew: tenants, scopes and rules repeat."""
TOLD: Final = frozenset(
    {
        "tiers",
        "prompt_types",
        "contexts",
        "key_prefixes",
        "adaptive",
        "freshness",
        "limits",
        "prices",
    }
)
"""Sections of the configuration that a replay needs; none holds a secret or an address."""
_ADAPTIVE: Final = "strategy adaptive: "
_CONTEXTS: Final[Mapping[str, str]] = {str(kind): name for kind, name in CONTEXT_OF.items()}


class Hasher:
    """Keyed hashes of what must not be read, 16 hexadecimal characters each."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.tenant = lru_cache(REMEMBERED)(lambda name: self.of("tenant", name))
        self.scope = lru_cache(REMEMBERED)(self._of_scope)
        self._beginning = lru_cache(REMEMBERED)(self._of_beginning)

    def of(self, kind: str, *parts: str | bytes | None) -> str:
        """The hash of some parts; equal parts of different kinds have different hashes."""
        return self._hash(kind, parts).hex()

    def blocks(self, plan: Plan, text: bytes) -> list[str]:
        """The chain of ``text``, which begins with what it is shared under."""
        last = self._beginning(plan.scope, plan.model)
        found = []
        for start in range(
            0, min(len(text) // BLOCK_BYTES, MOST_BLOCKS) * BLOCK_BYTES, BLOCK_BYTES
        ):
            piece = last + text[start : start + BLOCK_BYTES]
            last = blake2b(piece, key=self._key, digest_size=HASH_BYTES).digest()
            found.append(last.hex())
        return found

    def _of_scope(self, scope: Scope) -> str:
        return self.of("scope", scope_key(scope, b""))

    def _of_beginning(self, scope: Scope, model: str) -> bytes:
        return self._hash("blocks", (entry_key(scope_key(scope, b""), model, None, None),))

    def _hash(self, kind: str, parts: tuple[str | bytes | None, ...]) -> bytes:
        made = blake2b(key=self._key, digest_size=HASH_BYTES, person=kind.encode())
        for part in parts:
            raw = b"" if part is None else part if isinstance(part, bytes) else _raw(part)
            made.update(b"%d:%b" % (-1 if part is None else len(raw), raw))
        return made.digest()


@dataclass(frozen=True, slots=True)
class Names:
    """The operator's own words, which may be written as they are."""

    models: Collection[str]
    backends: Collection[str]

    @classmethod
    def of(cls, config: Config, models: Collection[str]) -> "Names":
        """Those of a configuration; ``models`` are those that are served."""
        given = {model for backend in config.backends for model in backend.models}
        named = {*models, *given, *config.prices, *config.aliases.values()}
        upstreams = {backend.name for backend in config.backends}
        return cls(named, upstreams | set(engine_names(config.engine.replicas)))


class Lines:
    """Makes the lines of one process."""

    def __init__(
        self,
        hasher: Hasher,
        config: Config,
        rules: Rules,
        names: Names,
        *,
        worker: int | None = None,
    ) -> None:
        self._hasher = hasher
        self._config = config
        self._names = names
        self._worker = worker
        self._origin = lru_cache(REMEMBERED)(lambda because: origin(because, rules))

    def begin(self, *, at: float) -> dict[str, Any]:
        """The first line of a file."""
        config = self._config
        told = config.model_dump(mode="json", include=set(TOLD))
        shares = {
            self._hasher.tenant(tenant.name): tenant.max_bytes
            for tenant in config.tenants
            if tenant.max_bytes is not None
        }
        kv_tokens = sum(backend.kv_tokens for backend in config.backends)
        kv_bytes = (
            config.engine.kv_memory * config.engine.replicas if config.engine_enabled() else 0
        )
        line = {"kind": "begin", "journal": VERSION, "at": at, "worker": self._worker}
        line |= {"block_bytes": BLOCK_BYTES, "config": told, "shares": shares}
        return line | {"backend_kv_tokens": kv_tokens, "engine_kv_bytes": kv_bytes}

    def call(self, answered: Answered) -> dict[str, Any]:
        """A call that was answered. What is None, false or nought is left out, but ``max_age_s: 0``."""
        visit, plan, outcome = answered
        call = visit.call
        line = {
            "kind": "call",
            "at": visit.asked_at,
            "order": visit.order,
            "took_s": round(visit.seconds, 6),
            "endpoint": visit.endpoint,
            "tenant": self._hasher.tenant(plan.scope.tenant),
            "scope": self._hasher.scope(plan.scope),
            "model": self._named("model", plan.model, self._names.models),
            "backend": self._backend(outcome.backend),
            "lane": plan.lane,
            "level": outcome.level,
            "hit": outcome.hit,
            "status": outcome.status,
            "stale": outcome.stale,
            "collapsed": outcome.collapsed,
            "forwarded": outcome.forwarded,
            "reason": outcome.miss_reason,
            "tier": outcome.tier if plan.enabled else None,
            "tokens_saved": outcome.tokens_saved,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "hit_tokens": outcome.hit_tokens,
            "miss_tokens": outcome.miss_tokens,
            "preload": plan.preload,
            "cost_s": round(visit.cost_s, 6),
        }
        if plan.enabled:
            line |= self._wishes(plan)
            older = superseded(call, plan) if call is not None and plan.may_store else None
            line["supersedes"] = None if older is None else self._hasher.of("key", older)
        if plan.enabled and call is not None and is_list(call) and not visit.stream:
            line["parts"] = True
        if visit.entry is not None:
            line |= {"stored_at": visit.entry.stored_at, "entry_ttl_s": visit.entry.ttl_s}
            line |= self._size(visit.entry)
        if call is not None:
            line |= self._prompt(plan, call)
        said = {name: value for name, value in line.items() if value}
        if line.get("max_age_s") == 0:  # nothing stored is new enough, where None takes all
            said["max_age_s"] = 0
        return said

    def stored(self, meta: EntryMeta, *, at: float, order: int) -> dict[str, Any]:
        """An answer was handed to the store, which had it by ``at``, unless it had no room."""
        return {
            "kind": "stored",
            "at": at,
            "order": order,
            "key": self._hasher.of("key", meta.key),
            "tenant": self._hasher.tenant(meta.scope.tenant),
            "endpoint": meta.endpoint,
            "model": self._named("model", meta.model, self._names.models),
            "tier": meta.tier,
            "priority": meta.priority,
            "stored_at": meta.stored_at,
            "entry_ttl_s": meta.ttl_s,
            "status": meta.status,
            "cost_s": round(meta.cost_s, 6),
            "prompt_tokens": meta.prompt_tokens,
            "completion_tokens": meta.completion_tokens,
            **self._size(meta),
        }

    def cleared(self, keys: Collection[bytes], *, at: float, order: int) -> dict[str, Any]:
        """Answers were removed."""
        hashes = [self._hasher.of("key", key) for key in keys]
        return {"kind": "cleared", "at": at, "order": order, "keys": hashes}

    def _wishes(self, plan: Plan) -> dict[str, Any]:
        """What was decided, and by which rule, so that another configuration can decide anew."""
        return {
            "key": self._hasher.of("key", plan.key),
            "read": plan.may_read,
            "store": plan.may_store,
            "match": plan.match,
            "plan_tier": plan.tier,
            "ttl_s": plan.ttl_s,
            "priority": plan.priority,
            "max_age_s": plan.max_age_s,
            "by": dict(origins(plan, self._origin)),
        }

    def _prompt(self, plan: Plan, call: Call) -> dict[str, Any]:
        text = prompt_text(call)
        said: dict[str, Any] = {"bytes_sent": len(text), "blocks": self._hasher.blocks(plan, text)}
        if call.endpoint == "chat":
            said["turn"] = sum(message["role"] == "user" for message in call.messages)
        if plan.affinity is not None:
            parts = (self._hasher.scope(plan.scope), plan.user, plan.affinity)
            said["conversation"] = self._hasher.of("talk", *parts)
        return said

    def _backend(self, name: str | None) -> str | None:
        return None if name is None else self._named("backend", name, self._names.backends)

    def _named(self, kind: str, name: str, known: Collection[str]) -> str:
        return name if name in known else self._hasher.of(kind, name)

    def _size(self, meta: EntryMeta) -> dict[str, int]:
        return {"bytes": meta.size_bytes, "beside_bytes": beside(meta)}


def prompt_text(call: Call) -> bytes:
    """What a prompt begins with, first: tools, then the messages one by one; nothing for embeddings."""
    body = call.body
    parts: list[object] = []
    match call.endpoint:
        case "chat":
            parts = [body.get("tools"), *call.messages]
        case "completions":
            parts = [body.get("prompt")]
        case "responses":
            items = body.get("input")
            parts = [body.get("tools"), body.get("instructions")]
            parts += items if isinstance(items, list) else [items]
        case "embeddings":
            pass
    return b"\n".join(_json(part) for part in parts if part is not None)


def origins(plan: Plan, origin_of: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Which rule decided about tier, ttl and priority, in the operator's words.

    ``request`` (the client said so), ``tier`` (what the tier brings), ``default``, ``shared``,
    ``prompt_type:NAME``, ``context:NAME``, ``key_prefix:NAME``; a name that the configuration does not
    have is ``*``. ``origin_of`` a reason is :func:`origin`, or remembers it.
    """
    because = {reason.field: reason.because for reason in plan.reasons}
    tier = because.get("tier", "")
    yield "tier", origin_of(tier)
    for field in ("ttl_s", "priority"):
        said = because.get(field, "")
        found = origin_of(said)
        follows = said == tier and not found.startswith("key_prefix:")
        yield field, "tier" if follows else found


def origin(because: str, rules: Rules) -> str:
    """The rule behind a plan's reason, in words that are the operator's."""
    prefixes = {rule.prefix for rule in rules.key_prefixes}
    for words, kind, known in (
        ("prompt type ", "prompt_type", rules.prompt_types),
        ("context ", "context", rules.contexts),
        ("key prefix ", "key_prefix", prefixes),
    ):
        if because.startswith(words):
            name = because.removeprefix(words)
            return f"{kind}:{name if name in known else '*'}"
    if because.startswith(_ADAPTIVE):
        name = _CONTEXTS[because.removeprefix(_ADAPTIVE)]
        return f"context:{name if name in rules.contexts else '*'}"
    if because.startswith("shared context "):
        return "shared"
    return "default" if because == "default tier" else "request"


def _json(part: object) -> bytes:
    try:
        return exact_json.dumps(part, sort_keys=True)
    except exact_json.JSONEncodeError:  # nested too deep
        return b""


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
