"""The command line: ``kvgate serve | check | stats | warm | model fetch | model plan``.

Exit codes: 0 done; 1 it could not be done, and one line (for ``check`` one per problem) says why;
2 the command line itself is wrong; 78 the model cannot be fetched; 130 stopped by Ctrl-C.

Imports are late: ``kvgate --help`` should not wait for a web server.
"""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.config import Config

DEFAULT_URL = "http://127.0.0.1:8080"
ANSWER_S = 10.0
COUNTED = ("requests", "hits", "hit_rate", "tokens_saved", "seconds_saved", "money_saved")
GROUPS = ("levels", "tiers", "models", "tenants")

app = typer.Typer(
    name="kvgate",
    help="An LLM gateway with two levels of cache: stored answers, and KV of prompts.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 78 no model, 130 stopped by Ctrl-C.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="The embedded engine's model.", no_args_is_help=True)
app.add_typer(model_app, name="model")

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="KVGATE_CONFIG", help="A config.yaml; none: the defaults."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="KVGATE_API_KEY", help="Where the gateway has tenants.", show_default=False
    ),
]


def _show_version(wanted: bool) -> None:  # the signature is typer's
    if wanted:
        typer.echo(f"kvgate {_version()}")
        raise typer.Exit


@app.callback()
def kvgate(
    *,
    version: Annotated[  # its callback has done everything
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """An LLM gateway with two levels of cache: stored answers, and KV of prompts."""


@app.command()
def serve(
    *,
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on one port, with one engine.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="console, json.")] = None,
) -> None:
    """Serve until Ctrl-C. A flag wins over the environment, that over the file."""
    wishes = {"host": host, "port": port, "workers": workers}
    wishes |= {"log_level": log_level, "log_format": log_format}
    flags = {f"server.{key}": value for key, value in wishes.items() if value is not None}
    loaded = _load(config, flags)

    import structlog

    from gateway.logs import configure
    from gateway.serve import serve as serve_until_stopped

    configure(loaded.server.log_level, loaded.server.log_format, sys.stderr)
    for warning in loaded.warnings:
        structlog.get_logger("kvgate.config").warning(warning.message, at=warning.path)
    try:
        code = serve_until_stopped(loaded)
    except OSError as error:
        _fail(_why_not_listening(error, loaded.server.host, loaded.server.port))
    raise typer.Exit(code)


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(envvar="KVGATE_CONFIG", help="A config.yaml.")
    ] = None,
) -> None:
    """Check a configuration, with the KVGATE_* environment over it, without starting anything."""
    from gateway.config_file import located

    loaded = _load(file, {})
    for warning in loaded.warnings:
        typer.echo(f"warning: {located(warning, file)}", err=True)
    typer.echo(f"{file or 'the defaults and the environment'}: ok")


@app.command()
def stats(
    *,
    url: Annotated[str, typer.Option(envvar="KVGATE_URL", help="The gateway.")] = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="As the gateway says it.")] = False,
) -> None:
    """What the cache of a running gateway has saved."""
    counted = _get(url.rstrip("/"), "/v1/cache/stats", api_key)
    if as_json:
        typer.echo(json.dumps(counted, indent=2, ensure_ascii=True))
        return
    from rich.console import Console

    Console().print(_table(counted))


@app.command()
def warm(
    file: Annotated[Path, typer.Argument(help="YAML or JSON: a list of questions, or patterns.")],
    *,
    url: Annotated[str, typer.Option(envvar="KVGATE_URL", help="The gateway.")] = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="The ended job, as JSON.")] = False,
) -> None:
    """Have questions answered and stored before anybody asks them. Ctrl-C cancels."""
    from rich.console import Console

    from gateway.cli_warm import CannotWarmError, Remote
    from gateway.cli_warm import warm as warm_until_done

    try:
        remote = Remote(url.rstrip("/"), api_key)
        code = warm_until_done(file, remote, as_json=as_json, console=Console(stderr=True))
    except CannotWarmError as error:
        _fail(str(error))
    raise typer.Exit(code)


@model_app.command("fetch")
def fetch_model() -> None:
    """Fetch the default model now, rather than on the first start."""
    raise typer.Exit(_engine("engine.weights.fetch"))


@model_app.command("plan")
def plan_model(
    *,
    model: Annotated[Path, typer.Option(help="A config.json, a folder with one, or a .gguf file.")],
    memory: Annotated[str, typer.Option(help="For keys and values, as 24GiB.")] = "1GiB",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How many tokens and conversations of a model fit into so much memory, before it is loaded."""
    words = ["plan", f"--model={model}", f"--memory={memory}", *(["--json"] if as_json else [])]
    raise typer.Exit(_engine("engine", *words))


def _engine(module: str, *words: str) -> int:
    """Run a program of the engine's in this terminal; its exit code."""
    from gateway.backends.embedded import code_environment

    command = [sys.executable, "-P", "-m", module, *words]
    try:
        done = subprocess.run(command, env=code_environment(os.environ), check=False)  # noqa: S603  # our own module
    except KeyboardInterrupt:
        raise typer.Exit(130) from None  # the child, in the same terminal, has said so
    return done.returncode


def main() -> None:
    """The entry point of the ``kvgate`` command."""
    app(prog_name="kvgate")


def _load(file: Path | None, flags: Mapping[str, object]) -> "Config":
    from gateway.config import ConfigError, load

    try:
        return load(file, environ=os.environ, flags=flags)
    except ConfigError as error:
        for line in error.lines():
            typer.echo(line, err=True)
        raise typer.Exit(1) from None


def _why_not_listening(error: OSError, host: str, port: int) -> str:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{place} is in use by another process; choose another port with --port"
    if error.errno == errno.EACCES:
        return f"{place} needs rights we do not have; choose a port from 1024 on with --port"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{place} is no address of this machine"
    return f"{place}: {error.strerror or error}"


def _get(url: str, path: str, api_key: str | None) -> Any:
    """JSON of a running gateway, or one line and exit code 1."""
    import http.client
    from urllib import error as url_error
    from urllib import request as url_request

    if not url.startswith(("http://", "https://")):
        _fail(f"{url} is no address: it must start with http:// or https://")
    asked = url_request.Request(url + path)  # noqa: S310  # http or https, see above
    if api_key:
        asked.add_header("Authorization", f"Bearer {api_key}")
    # no proxy: it is our own gateway; no redirect: it would carry the key elsewhere
    opener = url_request.OpenerDirector()
    for handler in (
        url_request.HTTPHandler,
        url_request.HTTPSHandler,
        url_request.HTTPErrorProcessor,
        url_request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    try:
        with opener.open(asked, timeout=ANSWER_S) as answer:
            return json.loads(answer.read())
    except url_error.HTTPError as error:
        error.close()
        if error.code == 401:
            _fail(f"{url} wants an API key it knows: --api-key or KVGATE_API_KEY")
        _fail(f"{url}{path} answered {error.code}; is this kvgate?")
    except url_error.URLError as error:
        _fail(f"{url} does not answer ({error.reason}); is `kvgate serve` running there?")
    except (http.client.HTTPException, OSError) as error:
        _fail(f"{url} broke off ({type(error).__name__}); is this kvgate?")
    except ValueError:
        _fail(f"{url}{path} answered something else than JSON; is this kvgate?")


def _table(counted: Mapping[str, Any]) -> "Table":
    """The counters as a table: the total, then each level, tier, model and tenant."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption="tokens, seconds and money: saved")
    table.add_column("", no_wrap=True)
    for name in COUNTED:
        table.add_column(name.removesuffix("_saved").replace("_", " "), justify="right")
    table.add_row(_plain(counted.get("tenant", "all")), *_cells(counted), style="bold")
    for group in GROUPS:
        rows = counted.get(group) or {}
        if rows:
            table.add_section()
        for name, row in rows.items():
            table.add_row(f"{group.removesuffix('s')} {_plain(name)}", *_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    shown = []
    for name in COUNTED:
        value = row.get(name, 0)
        match name:
            case "hit_rate":
                shown.append(f"{value:.1%}")
            case "seconds_saved":
                shown.append(f"{value:,.1f}")
            case "money_saved":
                shown.append(f"{value:,.4f}")
            case _:
                shown.append(f"{value:,}")
    return shown


def _plain(name: str) -> str:
    from rich.markup import escape

    from gateway.logs import escaped

    return escape(escaped(name))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kvgate")
    except PackageNotFoundError:
        return "from a source folder"


def _fail(message: str) -> NoReturn:
    typer.echo(f"kvgate: {message}", err=True)
    raise typer.Exit(1)
