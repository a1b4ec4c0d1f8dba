"""The plan of a call by a configuration alone: no gateway runs, nothing is stored, nobody is asked.

The plan, its reasons and the key are those that a gateway with this configuration makes; shared
contexts live in a gateway, so a call that names one is told only what holds without.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gateway.auth import OPEN_TENANT
from gateway.backends.base import Backend
from gateway.backends.served import engine_model
from gateway.cli_remote import NO, CannotAskError
from gateway.config import ENGINE_BACKEND, Config, ConfigError, load
from gateway.errors import ClientFault
from gateway.explaining import shown_plan
from gateway.kv_secret import known_secret
from gateway.router import Router, Served
from gateway.routes.explain import endpoint_asked
from gateway.routes.shape import call_in
from policies.call import RequestError
from policies.keys import Principal
from policies.plan import decide


class _Named:
    """Stands for a backend where only its name counts."""

    def __init__(self, name: str) -> None:
        self.name = name


def explain_offline(
    body: bytes,
    headers: Sequence[tuple[str, str]],
    file: Path | None,
    *,
    endpoint: str | None,
    tenant: str | None,
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """The explanation, as far as it goes.

    Raises: CannotAskError, with code 1 when the call would be refused, 2 for a bad configuration.
    """
    try:
        config = load(file, environ=environ)
    except ConfigError as error:
        raise CannotAskError(next(iter(error.lines()))) from None
    principal = _principal(config, tenant)
    secret = known_secret(config, environ)
    rules = config.rules(kv_secret=secret)
    try:
        call, directive = call_in(endpoint_asked(endpoint, body), body, headers, rules.limits)
        target = _router(config).target(call.model)
        plan = decide(call, directive, principal, rules, model=target.model)
    except (RequestError, ClientFault) as error:
        named = f"{error.param}: " if error.param and error.param not in error.message else ""
        raise CannotAskError(f"{named}{error.message}", code=NO) from None
    return {
        "object": "cache.explanation",
        "endpoint": call.endpoint,
        "asked_model": call.model,
        "model": target.model,
        "stream": call.stream,
        # Without the deployment's secret the key would be another one.
        "plan": {**shown_plan(plan), **({"key": None} if secret is None else {})},
    }


def _principal(config: Config, name: str | None) -> Principal:
    """The first key of a tenant, the first tenant unless one is named."""
    if not config.tenants and name in {None, OPEN_TENANT}:
        return Principal(OPEN_TENANT, trusted=True, admin=True)
    for tenant in config.tenants:
        if name in {None, tenant.name}:
            return Principal(
                tenant.name, user=tenant.user, trusted=tenant.trusted_proxy, admin=tenant.admin
            )
    known = ", ".join(tenant.name for tenant in config.tenants) or OPEN_TENANT
    raise CannotAskError(f"--tenant {name}: there is no such tenant; there are {known}")


def _router(config: Config) -> Router:
    served = []
    if config.engine_enabled():
        served.append(Served(_backend(ENGINE_BACKEND), (engine_model(config.engine.model),)))
    served += [Served(_backend(wish.name), wish.models) for wish in config.backends]
    return Router(served, config.aliases)


def _backend(name: str) -> Backend:
    return cast("Backend", _Named(name))
