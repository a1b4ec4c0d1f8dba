"""``kvgate check --connect``: each backend of the configuration asked for its models, a line for each.

The exit code is 1 unless all of them answer with a list of models.
"""

import asyncio
import time

import aiohttp
import typer

from gateway.backends.checks import Report, report
from gateway.backends.connections import Connector
from gateway.backends.served import served, upstreams
from gateway.config import Config
from gateway.logs import redacted

PATIENCE_S = 10.0


def connect(config: Config) -> bool:
    """Ask all at once and print what they say; whether all is well."""
    reports = asyncio.run(_reports(config))
    if not reports:
        typer.echo("no backends: the embedded engine answers alone")
    for one in reports:
        typer.echo(f"{one.name}: {redacted(one.says)}", err=not one.is_well)
    return all(one.is_well for one in reports)


async def _reports(config: Config) -> list[Report]:
    async with aiohttp.ClientSession(connector=Connector(keepalive_s=1.0)) as session:
        backends = [one.backend for one in served(config, session, None, time.monotonic)]
        asked = (
            report(one.backend, one.base_url, one.models, limit_s=PATIENCE_S)
            for one in upstreams(config, backends)
        )
        return await asyncio.gather(*asked)
