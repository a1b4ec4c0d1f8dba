"""The sections of ``config.yaml`` as data, in the file's order, with every default.

``config.yaml`` at the root of the repository says the same in words; a test compares the two.
"""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from gateway.backends.group import Strategy
from gateway.config_values import (
    AtLeastOne,
    AutoOrBool,
    AutoOrCount,
    BaseUrl,
    ContextTokens,
    Duration,
    HostName,
    KeyDigest,
    LongerThanZero,
    Name,
    Origin,
    RedisUrl,
    Secret,
    Size,
    Text,
    Whole,
    one_of,
    power_of_two,
)
from policies.call import RequestError
from policies.eviction import Priority
from policies.rules import Limits, Match, ScopeName, StoreKind, TierName
from policies.warming import Item, pattern_items

DEFAULT_TABLES: Mapping[str, Any] = {
    "aliases": {"deepseek-chat": "default", "deepseek-coder": "default"},
    "tiers": {
        "hot": {
            "ttl": 300,
            "priority": "high",
            "stale_while_revalidate": 30,
            "stale_if_error": 300,
        },
        "warm": {"ttl": 1800, "priority": "medium"},
        "cold": {"ttl": 7200, "priority": "low", "store": "disk"},
    },
    "prompt_types": {
        "faq": "hot",
        "common_query": "hot",
        "template": "warm",
        "standard": "warm",
        "*": "cold",
    },
    "contexts": {
        "code_review": {"ttl": 7200, "priority": "high"},
        "casual_chat": {"ttl": 1800, "priority": "low"},
        "technical_support": {"ttl": 3600, "priority": "medium"},
        "documentation": {"ttl": 14400, "priority": "high"},
        "*": {"ttl": 3600, "priority": "medium"},
    },
    "key_prefixes": {"faq:": {"tier": "hot", "ttl": 86400}},
    "prices": {"default": {"miss_per_mtok": 0.28, "hit_per_mtok": 0.028, "output_per_mtok": 0.42}},
}
OPEN_TABLES = ("aliases", "prompt_types", "contexts", "key_prefixes", "prices")


class Section(BaseModel):
    """Unknown keys are errors, values are final, and no error shows what was typed.

    A size that is ``auto`` is one that the operator did not choose; see ``gateway.memory_share``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    auto_sizes: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _auto_is_not_chosen(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {k: v for k, v in data.items() if k not in cls.auto_sizes or v != "auto"}


class Server(Section):
    """Where the gateway listens and how it speaks to its operator."""

    host: Text = "127.0.0.1"
    port: Annotated[Whole, Field(ge=0, le=65535)] = 8080
    workers: Annotated[Whole, Field(ge=1, le=64)] = 1
    log_level: Annotated[str, one_of(("debug", "info", "warning", "error"), later=())] = "info"
    log_format: Annotated[Literal["console", "json"], one_of(("console", "json"), later=())] = (
        "console"
    )
    shutdown_grace_s: Duration = 10.0
    write_timeout: LongerThanZero = 30.0
    allowed_hosts: tuple[HostName, ...] = ()
    cors_origins: tuple[Origin, ...] = ()


class User(Section):
    """A user of a tenant with keys of its own. ``api_keys`` as in :class:`Tenant`."""

    name: Text
    api_keys: Annotated[tuple[KeyDigest, ...], AtLeastOne, Field(repr=False)]


class Tenant(Section):
    """Who may ask. ``api_keys`` holds SHA-256 digests; a plain key does not outlive the loading.

    A tenant needs a key of its own or a user with one.
    """

    name: Name
    api_keys: Annotated[tuple[KeyDigest, ...], Field(repr=False)] = ()
    users: tuple[User, ...] = ()
    user: Text | None = None
    trusted_proxy: bool = False
    admin: bool = False
    max_bytes: Size | None = None
    kv_max_bytes: Size | None = None

    @model_validator(mode="after")
    def _can_be_asked_for(self) -> Self:
        if not self.api_keys and not self.users:
            raise ValueError("needs api_keys, or users with api_keys")
        names = [user.name for user in self.users]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two users have the name {twice[0]}")
        return self

    def digests(self) -> Iterator[tuple[tuple[str | int, ...], bytes]]:
        """All digests with the place where each stands."""
        for place, digest in enumerate(self.api_keys):
            yield ("api_keys", place), digest
        for number, user in enumerate(self.users):
            for place, digest in enumerate(user.api_keys):
                yield ("users", number, "api_keys", place), digest


class Backend(Section):
    """An OpenAI-compatible upstream. A model ``*`` takes every name that nobody else serves."""

    name: Name
    base_url: BaseUrl
    api_key: SecretStr | None = None
    dialect: Annotated[
        Literal["generic", "kvgate", "openai", "deepseek", "vllm", "sglang", "llamacpp"],
        one_of(("generic", "kvgate", "openai", "deepseek", "vllm", "sglang", "llamacpp"), later=()),
    ] = "generic"
    models: Annotated[tuple[Text, ...], AtLeastOne]
    max_concurrency: Annotated[Whole, Field(ge=1)] | None = None
    max_waiting: Annotated[Whole, Field(ge=0)] = 512
    kv_tokens: Annotated[Whole, Field(ge=1)] = 1_000_000
    connect_timeout: LongerThanZero = 5.0
    first_token_timeout: LongerThanZero | None = None
    read_timeout: LongerThanZero = 300.0
    stream_idle_timeout: LongerThanZero = 30.0


class Routing(Section):
    """Among backends that serve the same model."""

    strategy: Annotated[Strategy, one_of(get_args(Strategy), later=())] = "prefix"


class Failover(Section):
    """What happens when a backend fails before the first piece of its answer."""

    retries: Annotated[Whole, Field(ge=0, le=16)] = 2
    retry_budget: Annotated[float, Field(ge=0, le=1)] = 0.2
    breaker_failures: Annotated[Whole, Field(ge=0, le=1000)] = 5
    breaker_pause: LongerThanZero = 5.0
    outlier_factor: Annotated[float, Field(ge=0, le=100)] = 3.0


class KvDisk(Section):
    """KV blocks on disk: they outlive the engine."""

    path: Text | None = None
    max: Size = 8 * 2**30


class Engine(Section):
    """The embedded engine; the gateway passes the section on and reads little of it."""

    auto_sizes = frozenset({"kv_memory", "kv_host_memory"})
    enabled: AutoOrBool = "auto"
    model: Text = "smollm2-135m-instruct"
    device: Annotated[str, one_of(("auto", "cpu", "cuda"), later=())] = "auto"
    dtype: Annotated[str, one_of(("auto", "float32", "bfloat16"), later=("float16",))] = "auto"
    kernels: Annotated[str, one_of(("auto", "native", "torch"), later=())] = "auto"
    kv_dtype: Annotated[str, one_of(("auto", "bf16", "fp8"), later=())] = "auto"
    mla: Annotated[str, one_of(("auto", "naive", "absorb"), later=())] = "auto"
    max_model_len: Annotated[ContextTokens, Field(ge=1)] = 8192
    prefix_cache: bool = True
    block_tokens: Annotated[Whole, Field(ge=8, le=128), AfterValidator(power_of_two)] = 32
    kv_memory: Size = 2**30
    kv_host_memory: Size = 2 * 2**30
    kv_disk: KvDisk = KvDisk()
    threads: AutoOrCount = "auto"
    chunk_tokens: Annotated[Whole, Field(ge=16, le=8192)] = 128
    max_sequences: Annotated[Whole, Field(ge=1, le=4096)] = 32
    speculate_tokens: Annotated[Whole, Field(ge=0, le=64)] = 8
    verify_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_waiting: Annotated[Whole, Field(ge=0)] = 512
    first_token_timeout: LongerThanZero | None = None
    read_timeout: LongerThanZero = 600.0
    replicas: Annotated[Whole, Field(ge=1, le=64)] = 1
    tensor_parallel: Annotated[Whole, Field(ge=1, le=64)] = 1


class Defaults(Section):
    """What holds for a request that says nothing about caching."""

    enabled: bool = False
    match: Annotated[Match, one_of(("exact", "key"), later=("semantic",))] = "exact"
    scope: Annotated[ScopeName, one_of(("tenant", "user", "shared"), later=())] = "tenant"


class Tier(Section):
    """One response tier: how long, how important, how much."""

    auto_sizes = frozenset({"max_bytes"})
    ttl: Duration
    priority: Priority
    store: Annotated[StoreKind, one_of(("memory", "disk", "redis"), later=())] = "memory"
    max_bytes: Size = 256 * 2**20
    stale_while_revalidate: Duration = 0.0
    stale_if_error: Duration = 0.0


class ColdTier(Tier):
    """The largest one, on disk unless the operator says otherwise."""

    max_bytes: Size = 4 * 2**30


class Tiers(Section):
    """The three tiers; there is no fourth."""

    hot: Tier
    warm: Tier
    cold: ColdTier

    def by_name(self) -> Mapping[TierName, Tier]:
        """The tiers in their order."""
        return {"hot": self.hot, "warm": self.warm, "cold": self.cold}


class Profile(Section):
    """What a kind of context brings along."""

    ttl: Duration | None = None
    priority: Priority | None = None


class Prefix(Section):
    """What a cache key's beginning brings along."""

    tier: TierName | None = None
    ttl: Duration | None = None
    priority: Priority | None = None


class Adaptive(Section):
    """``strategy: adaptive``."""

    min_messages: Annotated[Whole, Field(ge=1)] = 5


class Freshness(Section):
    """How lifetimes are spread out."""

    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.1
    negative_ttl: Duration = 60.0
    refresh_beta: Annotated[float, Field(ge=0, le=100)] = 1.0
    max_renewals: Annotated[Whole, Field(ge=0, le=1024)] = 4


class RequestLimits(Section):
    """What a single request may ask for."""

    max_ttl: LongerThanZero = 604800.0
    max_entry_bytes: Size = 4 * 2**20
    max_body_bytes: Size = 16 * 2**20


class JournalFile(Section):
    """What ``kvgate replay`` reads: a line for each call, hashes and counts only."""

    path: Text | None = None
    max_bytes: Annotated[Size, Field(ge=2**16)] = 64 * 2**20
    files: Annotated[Whole, Field(ge=1, le=1000)] = 4


class Store(Section):
    """What all tiers share."""

    disk_path: Text | None = None
    redis_url: RedisUrl | None = None
    timeout_ms: Annotated[Whole, Field(ge=1, le=10_000)] = 50


class Secrets(Section):
    """What only the gateways of one deployment know; see ``gateway.kv_secret``."""

    kv: Secret | None = None


class Pattern(Section):
    """Questions to answer before anybody asks them."""

    id: Name
    model: Text | None = None
    base_messages: tuple[dict[str, Any], ...] = ()
    variations: tuple[Text | dict[str, Any], ...] = ()
    params: dict[str, Any] = Field(default_factory=dict)
    ttl: Duration | None = None
    tier: TierName | None = None
    priority: Priority | None = None
    on_start: bool = False
    keep_warm: bool = False

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        try:
            self.items()
        except RequestError as error:
            raise ValueError(error.message) from None
        return self

    def items(self) -> tuple[Item, ...]:
        """Its questions; a pattern without variations has none."""
        if not self.variations:
            return ()
        said = self.model_dump(exclude={"on_start", "keep_warm"}, exclude_none=True)
        for name in ("base_messages", "variations"):
            said[name] = list(said[name])
        return pattern_items(said, "", limits=Limits(max_ttl_s=inf))


def _named_once(patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    names = [pattern.id for pattern in patterns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two patterns have the id {twice[0]}")
    return patterns


class Warm(Section):
    """Warming: how many at once, and what the configuration itself wants warm."""

    concurrency: Annotated[Whole, Field(ge=1, le=256)] = 2
    patterns: Annotated[tuple[Pattern, ...], AfterValidator(_named_once)] = ()


class Price(Section):
    """Money per million tokens, for the savings in the statistics."""

    miss_per_mtok: Annotated[float, Field(ge=0)]
    hit_per_mtok: Annotated[float, Field(ge=0)]
    output_per_mtok: Annotated[float, Field(ge=0)]


class Tracing(Section):
    """OpenTelemetry spans, and the traces of others."""

    endpoint: BaseUrl | None = None
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    pass_on: bool = True
