"""The backends that the configuration names, built: the embedded engines first, then the upstreams."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import aiohttp

from gateway.backends.base import Backend
from gateway.backends.checks import Checked
from gateway.backends.lanes import Lanes
from gateway.backends.openai import OpenAIBackend
from gateway.backends.replicas import Engines, locate
from gateway.backends.waits import Timeouts
from gateway.backends.watch import Upstream
from gateway.config import Config, engine_names
from gateway.router import Served


def served(
    config: Config,
    session: aiohttp.ClientSession,
    engines: Engines | None,
    clock: Callable[[], float],
    now: Callable[[], float] | None = None,
    *,
    token: str | None = None,
) -> list[Served]:
    """Each backend and its models, in the operator's order.

    ``token`` is what the embedded engines want to hear. ``clock`` is monotonic, ``now`` unix time, in seconds.
    """
    found = [] if engines is None else list(_embedded(config, session, engines, clock, token))
    for wish in config.backends:
        lanes = None
        if wish.max_concurrency:
            lanes = Lanes(wish.max_concurrency, most_waiting=wish.max_waiting, clock=clock)
        backend = OpenAIBackend(
            wish.name,
            session=session,
            locate=partial(str, wish.base_url.rstrip("/")),
            clock=clock,
            now=now,
            api_key=wish.api_key.get_secret_value() if wish.api_key else None,
            dialect=wish.dialect,
            alone=len({tenant.name for tenant in config.tenants}) <= 1,
            timeouts=Timeouts(
                connect_s=wish.connect_timeout,
                read_s=wish.read_timeout,
                first_token_s=wish.first_token_timeout,
                idle_s=wish.stream_idle_timeout,
            ),
            lanes=lanes,
            passes_trace=config.tracing.pass_on,
        )
        found.append(Served(backend, wish.models, wish.kv_tokens))
    return found


def upstreams(config: Config, backends: Sequence[Backend]) -> list[Upstream]:
    """The backends that the configuration names, as they are checked at the start."""
    by_name = {backend.name: backend for backend in backends if isinstance(backend, Checked)}
    return [
        Upstream(by_name[wish.name], wish.base_url.rstrip("/"), wish.models)
        for wish in config.backends
    ]


def _embedded(
    config: Config,
    session: aiohttp.ClientSession,
    engines: Engines,
    clock: Callable[[], float],
    token: str | None,
) -> Iterator[Served]:
    wish = config.engine
    limits = Timeouts(read_s=wish.read_timeout, first_token_s=wish.first_token_timeout)
    for name in engine_names(wish.replicas):
        backend = OpenAIBackend(
            name,
            session=session,
            locate=partial(locate, engines, name),
            clock=clock,
            api_key=token,
            dialect="kvgate",
            timeouts=limits,
            passes_trace=config.tracing.pass_on,
        )
        yield Served(backend, (engine_model(config.engine.model),))


def engine_model(model: str) -> str:
    """The name under which the embedded engines' model is served: its id, or its file's name."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name
