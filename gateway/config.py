"""The operator's wishes: ``config.yaml``, the ``KVGATE_*`` environment, the flags of ``serve``.

Later sources win: defaults < file < environment < flags. Mappings are laid over each other key by
key, so ``KVGATE_TIERS__HOT__TTL=60`` changes one number of one tier; lists and plain values are
replaced. In the open tables (aliases, prompt_types, contexts, key_prefixes, prices) ``null``
takes an entry of the defaults away.

The sections themselves are in ``config_sections``, the kinds of value in ``config_values``, the
reading of YAML in ``config_file``, where a value came from in ``config_sources``. :func:`load`
is the way in.
"""

import ipaddress
import secrets
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from gateway.config_file import ConfigError, Document, Problem, Where, read_document
from gateway.config_sections import (
    DEFAULT_TABLES,
    OPEN_TABLES,
    Adaptive,
    Backend,
    Defaults,
    Engine,
    Failover,
    Freshness,
    JournalFile,
    Prefix,
    Price,
    Profile,
    RequestLimits,
    Routing,
    Secrets,
    Server,
    Store,
    Tenant,
    Tiers,
    Tracing,
    Warm,
)
from gateway.config_sources import Sources, overlay
from gateway.config_values import Text, weak_key
from policies.rules import Limits, PrefixRule, ProfileRule, Rules, TierName, TierRule

__all__ = ["Backend", "Config", "ConfigError", "Engine", "Problem", "Tenant", "load"]

ENGINE_BACKEND = "embedded"  # the name of the first embedded engine among the backends


class Config(BaseSettings):
    """The whole configuration, checked and final. ``Config()`` is the shipped ``config.yaml``.

    Only :func:`load` reads files and the environment, and only it makes the checks that span
    sections.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_prefix="KVGATE_",
        env_nested_delimiter="__",
    )

    server: Server = Server()
    tenants: tuple[Tenant, ...] = ()
    backends: tuple[Backend, ...] = ()
    routing: Routing = Routing()
    failover: Failover = Failover()
    fallbacks: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    engine: Engine = Engine()
    aliases: dict[Text, Text] = Field(default_factory=dict)
    defaults: Defaults = Defaults()
    tiers: Tiers = Field(default_factory=lambda: Tiers.model_validate(DEFAULT_TABLES["tiers"]))
    prompt_types: dict[Text, TierName] = Field(default_factory=dict)
    contexts: dict[Text, Profile] = Field(default_factory=dict)
    key_prefixes: dict[Text, Prefix] = Field(default_factory=dict)
    adaptive: Adaptive = Adaptive()
    freshness: Freshness = Freshness()
    limits: RequestLimits = RequestLimits()
    store: Store = Store()
    secrets: Secrets = Secrets()
    journal: JournalFile = JournalFile()
    warm: Warm = Warm()
    tracing: Tracing = Tracing()
    prices: dict[Text, Price] = Field(default_factory=dict)
    _warnings: tuple[Problem, ...] = PrivateAttr(default=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # load() is given the environment
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # same
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the constructor is given, and nothing behind its back."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _over_the_default_tables(cls, data: Any) -> Any:
        # a section whose lines are all commented out reads as null: it is absent
        given = {k: v for k, v in data.items() if v is not None or k not in cls.model_fields}
        merged = overlay(DEFAULT_TABLES, given)
        for table in OPEN_TABLES:
            if isinstance(merged[table], dict):
                merged[table] = {k: v for k, v in merged[table].items() if v is not None}
        return merged

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What works but should be looked at, e.g. keys that can be guessed."""
        return self._warnings

    def engine_enabled(self) -> bool:
        """Whether the embedded engine is started: ``auto`` means when no backend is configured."""
        return not self.backends if self.engine.enabled == "auto" else self.engine.enabled

    def rules(self, *, kv_secret: bytes | None = None) -> Rules:
        """The operator's wishes as ``policies`` wants them.

        ``kv_secret`` keys the salts of KV blocks and is the deployment's (``gateway.kv_secret``);
        without it there is a new one, for callers that send nothing to a backend.
        """
        tiers = {
            name: TierRule(
                name=name,
                ttl_s=tier.ttl,
                priority=tier.priority,
                max_bytes=tier.max_bytes,
                stale_while_revalidate_s=tier.stale_while_revalidate,
                stale_if_error_s=tier.stale_if_error,
                store=tier.store,
            )
            for name, tier in self.tiers.by_name().items()
        }
        return Rules(
            tiers=tiers,
            prompt_types=self.prompt_types,
            contexts={
                name: ProfileRule(ttl_s=profile.ttl, priority=profile.priority)
                for name, profile in self.contexts.items()
            },
            key_prefixes=tuple(
                PrefixRule(
                    prefix=prefix.removesuffix("*"),
                    tier=rule.tier,
                    ttl_s=rule.ttl,
                    priority=rule.priority,
                )
                for prefix, rule in self.key_prefixes.items()
            ),
            adaptive_min_messages=self.adaptive.min_messages,
            enabled_default=self.defaults.enabled,
            match_default=self.defaults.match,
            scope_default=self.defaults.scope,
            jitter=self.freshness.jitter,
            negative_ttl_s=self.freshness.negative_ttl,
            refresh_beta=self.freshness.refresh_beta,
            max_renewals=self.freshness.max_renewals,
            limits=Limits(
                max_ttl_s=self.limits.max_ttl,
                max_entry_bytes=self.limits.max_entry_bytes,
                max_body_bytes=self.limits.max_body_bytes,
            ),
            kv_secret=secrets.token_bytes(32) if kv_secret is None else kv_secret,
            kv_quotas={
                tenant.name: tenant.kv_max_bytes
                for tenant in self.tenants
                if tenant.kv_max_bytes is not None
            },
        )


def load(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
) -> Config:
    """Read, merge and check everything.

    Args:
        file: a YAML file, or None for the defaults (which are the shipped ``config.yaml``).
        environ: the environment; only ``KVGATE_*`` is looked at, empty values count as absent.
        flags: command line values by dotted key, e.g. ``{"server.host": "::1"}``.

    Raises:
        ConfigError: with every problem found, each with its path and line or variable.
    """
    document = read_document(file) if file is not None else Document()
    sources, problems = Sources.collect(Config, document, environ, flags or {})
    data = overlay(overlay(document.data, sources.from_environment), sources.from_flags)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems += [sources.problem(detail) for detail in error.errors(include_input=False)]
        raise ConfigError(problems, file=file) from None
    problems += [sources.at(where, message) for where, message in _contradictions(config)]
    if problems:
        raise ConfigError(problems, file=file)
    config._warnings = tuple(  # noqa: SLF001  # load is the only writer of this model's own field
        sources.at(where, message) for where, message in _doubts(data)
    )
    return config


def _contradictions(config: Config) -> Iterator[tuple[Where, str]]:
    """What no single section can see."""
    if not config.tenants and not _is_loopback(config.server.host):
        message = "without tenants only loopback (127.0.0.1, ::1, localhost) is allowed"
        yield ("server", "host"), message
    if not config.engine_enabled() and not config.backends:
        yield ("engine", "enabled"), "false leaves nothing to ask: configure backends"
    yield from _without_redis(config)
    yield from _without_otel(config)
    yield from _repeated("tenants", [tenant.name for tenant in config.tenants])
    yield from _repeated("backends", [backend.name for backend in config.backends])
    for index, backend in enumerate(config.backends):
        if backend.name in engine_names(config.engine.replicas):
            yield ("backends", index, "name"), "is the name of an embedded engine"
    owners: dict[bytes, str] = {}
    for index, tenant in enumerate(config.tenants):
        for place, digest in tenant.digests():
            if digest in owners:
                message = f"is a key of tenant {owners[digest]} already"
                yield ("tenants", index, *place), message
            owners.setdefault(digest, tenant.name)
    for alias in config.aliases:
        seen, name = {alias}, config.aliases[alias]
        while name in config.aliases and name not in seen:
            seen.add(name)
            name = config.aliases[name]
        if name == alias:
            yield ("aliases", alias), "stands for itself in the end"
    yield from _lost_fallbacks(config)
    for table in ("prompt_types", "contexts"):
        if "*" not in getattr(config, table):
            yield (table,), 'needs an entry for "*", which stands for all others'


def _lost_fallbacks(config: Config) -> Iterator[tuple[Where, str]]:
    """Fallbacks that could never answer."""
    served = {model for backend in config.backends for model in backend.models}
    known = served | set(config.aliases) | {"default"}
    if config.engine_enabled():
        path = Path(config.engine.model)
        known |= {path.name, path.stem}
    for model, others in config.fallbacks.items():
        for place, other in enumerate(others):
            if other == model:
                yield ("fallbacks", model, place), "is the model itself"
            elif other not in known and "*" not in served:
                yield ("fallbacks", model, place), "is a model that nobody serves"


def engine_names(replicas: int) -> tuple[str, ...]:
    """The embedded engines' names among the backends: ``embedded``, ``embedded-2``, …"""
    return (ENGINE_BACKEND, *(f"{ENGINE_BACKEND}-{number}" for number in range(2, replicas + 1)))


def _without_redis(config: Config) -> Iterator[tuple[Where, str]]:
    """What is to lie on a server that is not named, or cannot be spoken to."""
    if config.store.redis_url is None:
        for name, tier in config.tiers.by_name().items():
            if tier.store == "redis":
                yield ("tiers", name, "store"), "redis needs store.redis_url"
    elif find_spec("redis") is None:
        message = 'needs the redis extra: pip install "kvgate[redis]"'
        yield ("store", "redis_url"), message


def _without_otel(config: Config) -> Iterator[tuple[Where, str]]:
    if config.tracing.endpoint is not None and not _has_otel():
        yield ("tracing", "endpoint"), 'needs the otel extra: pip install "kvgate[otel]"'


def _has_otel() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # nor any package above it
        return False


def _repeated(section: str, names: list[str]) -> Iterator[tuple[Where, str]]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield (section, index, "name"), f"{name} is taken by {section}.{names.index(name)}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: what it resolves to can change


def _doubts(data: Mapping[str, Any]) -> Iterator[tuple[Where, str]]:
    """Asked of the raw data: the checked one has only digests."""
    for index, tenant in enumerate(data.get("tenants") or ()):
        for where, keys in _key_lists(tenant):
            for place, key in enumerate(keys):
                if doubt := weak_key(key):
                    yield ("tenants", index, *where, place), doubt


def _key_lists(tenant: Mapping[str, Any]) -> Iterator[tuple[Where, Sequence[Any]]]:
    yield ("api_keys",), tenant.get("api_keys") or ()
    for number, user in enumerate(tenant.get("users") or ()):
        yield ("users", number, "api_keys"), user["api_keys"]
