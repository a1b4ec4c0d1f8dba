"""The command line: ``kvgate serve | check | model …`` here, every other command in a module of its own.

Exit codes: 0 done; 1 it could not be done, or the answer is no, and one line (for ``check`` one per
problem) says why; 2 the command line itself is wrong, or no gateway could be asked; 78 another start would
end the same way (``serve``: a bad configuration, an engine that cannot start; ``model fetch``: no model);
130 stopped by Ctrl-C.

Imports are late: ``kvgate --help`` should not wait for a web server.
"""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, NoReturn

import typer

from gateway.cli_explain import explain
from gateway.cli_grafana import grafana
from gateway.cli_inspect import inspect
from gateway.cli_replay import replay
from gateway.cli_stats import stats
from gateway.cli_top import top
from gateway.cli_warm import warm_command

if TYPE_CHECKING:
    from gateway.config import Config

CANNOT_START: Final = 78  # sysexits.h EX_CONFIG

app = typer.Typer(
    name="kvgate",
    help="An LLM gateway with two levels of cache: stored answers, and KV of prompts.",
    epilog="Exit codes: 0 done, 1 failed or the answer is no, 2 wrong usage or no gateway there, "
    "78 cannot start as configured, 130 stopped by Ctrl-C.",
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


def _show_version(wanted: bool) -> None:  # the signature is typer's
    if wanted:
        from gateway.version import installed_version

        typer.echo(f"kvgate {installed_version()}")
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
    early_format = log_format or os.environ.get("KVGATE_SERVER__LOG_FORMAT")
    loaded = _load(config, flags, otherwise=CANNOT_START, log_format=early_format)

    import structlog

    from gateway.logs import catch_stray, configure
    from gateway.serve import serve as serve_until_stopped

    configure(loaded.server.log_level, loaded.server.log_format, sys.stderr)
    catch_stray()
    for warning in loaded.warnings:
        structlog.get_logger("kvgate.config").warning(warning.message, at=warning.path)
    try:
        code = serve_until_stopped(loaded)
    except OSError as error:
        why = _why_not_listening(error, loaded.server.host, loaded.server.port)
        _fail(f"kvgate: {why}", log_format=loaded.server.log_format)
    raise typer.Exit(code)


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(envvar="KVGATE_CONFIG", help="A config.yaml.")
    ] = None,
    *,
    connect: Annotated[
        bool, typer.Option("--connect", help="Also ask each backend for its models, with its key.")
    ] = False,
) -> None:
    """Check a configuration, with the KVGATE_* environment over it, without starting anything."""
    from gateway.config_file import located

    loaded = _load(file, {})
    for warning in loaded.warnings:
        typer.echo(f"warning: {located(warning, file)}", err=True)
    typer.echo(f"{file or 'the defaults and the environment'}: ok")
    if connect:
        from gateway.cli_connect import connect as ask_backends

        raise typer.Exit(0 if ask_backends(loaded) else 1)


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


# What asks a running gateway.
app.command()(stats)
app.command()(top)
app.command()(inspect)
app.command()(explain)
app.command()(replay)
app.command("warm")(warm_command)
# What needs none.
app.command()(grafana)


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


def _load(
    file: Path | None,
    flags: Mapping[str, object],
    *,
    otherwise: int = 1,
    log_format: str | None = None,
) -> "Config":
    from gateway.config import ConfigError, load

    try:
        return load(file, environ=os.environ, flags=flags)
    except ConfigError as error:
        _fail(*error.lines(), exit_code=otherwise, log_format=log_format)


def _why_not_listening(error: OSError, host: str, port: int) -> str:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{place} is in use by another process; choose another port with --port"
    if error.errno == errno.EACCES:
        return f"{place} needs rights we do not have; choose a port from 1024 on with --port"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{place} is no address of this machine"
    return f"{place}: {error.strerror or error}"


def _fail(*lines: str, exit_code: int = 1, log_format: str | None = None) -> NoReturn:
    """End with these lines, in the format that the log has."""
    from gateway.logs import renderer

    for line in lines:
        if log_format == "json":
            said = renderer("json", sys.stderr)(_Name("kvgate"), "error", {"event": line})
            typer.echo(said, nl=False, err=True)
        else:
            typer.echo(line, err=True)
    raise typer.Exit(exit_code)


class _Name(NamedTuple):
    name: str
