"""``kvgate replay``: what if? A journal, or a trace of prompts, under other settings.

Exit codes: 0 done; 1 a file is no trace that can be replayed; 2 the command line or a configuration is
wrong; 130 stopped by Ctrl-C.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli_remote import NO, CannotAskError, one_line, plain

if TYPE_CHECKING:
    from gateway.trace import Trace
    from gateway.whatif_run import Runner, Setting
    from gateway.whatif_sweep import Sweep


def replay(
    files: Annotated[
        list[Path], typer.Argument(help="Journals of kvgate, or traces of Mooncake (.jsonl, .gz).")
    ],
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Under this; none: as it was recorded.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Beside it, under this other config.yaml.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="memory=1GiB,2GiB; also blocks, hot, warm, cold, responses."),
    ] = None,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Propose sizes and ttls, with what they bring.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="The first sweep's curve as .png, .svg or .pdf.")
    ] = None,
    kv_token_bytes: Annotated[
        int | None, typer.Option(min=1, help="KV bytes a token; none: the bundled model's 23,040.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What if? Hits, savings and evictions of recorded traffic under other settings."""
    with one_line():
        report, text = _replayed(
            files,
            config=config,
            compare=compare,
            sweeps=sweep or [],
            recommend=recommend,
            plot=plot,
            token_bytes=kv_token_bytes,
            draws=not as_json,
        )
    typer.echo(json.dumps(report, indent=2, ensure_ascii=True) if as_json else text, nl=as_json)


def _replayed(
    files: list[Path],
    *,
    config: Path | None,
    compare: Path | None,
    sweeps: list[str],
    recommend: bool,
    plot: Path | None,
    token_bytes: int | None,
    draws: bool,
) -> tuple[dict[str, Any], str]:
    """The report as JSON and as text. Raises: CannotAskError."""
    from gateway import cli_replay_curve, cli_replay_tables, whatif_sweep
    from gateway.trace import TraceError, read
    from gateway.whatif_advice import advised
    from gateway.whatif_blocks import DEFAULT_TOKEN_BYTES
    from gateway.whatif_run import Runner

    wanted = _sweeps(sweeps, plot)
    try:
        runner = Runner(read(files), token_bytes=token_bytes or DEFAULT_TOKEN_BYTES)
        settings = _settings(runner, config, compare)
        runs = [runner.run(setting) for setting in settings]
        curves = [(one, whatif_sweep.swept(runner, settings[0], one)) for one in wanted]
        advice = advised(runner, settings[0]) if recommend else None
    except TraceError as error:
        raise CannotAskError(plain(error), code=NO) from None
    if plot is not None:
        cli_replay_curve.to_file(plot, *curves[0])
    assumed = list(cli_replay_tables.assumptions(runner, runs))
    report: dict[str, Any] = {"trace": _trace(runner.trace, files), "assumptions": assumed}
    report["runs"] = [run.as_dict() for run in runs]
    report["sweeps"] = [whatif_sweep.as_dict(one, points) for one, points in curves]
    if advice is not None:
        report["recommendations"] = [one.as_dict() for one in advice]
    text = cli_replay_tables.text(report, runs, curves, advice) if draws else ""
    return report, text


def _sweeps(texts: list[str], plot: Path | None) -> "list[Sweep]":
    from gateway.whatif_sweep import SweepError, parse_sweep

    if plot is not None and not texts:
        raise CannotAskError("--plot draws a sweep: give --sweep, too")
    try:
        return [parse_sweep(text) for text in texts]
    except SweepError as error:
        raise CannotAskError(plain(error)) from None


def _settings(runner: "Runner", config: Path | None, compare: Path | None) -> "list[Setting]":
    from gateway.config import ConfigError, load

    found = [] if config is not None else [runner.as_recorded()]
    try:
        found += [
            runner.setting(file.name, load(file, environ=os.environ))
            for file in (config, compare)
            if file is not None
        ]
    except ConfigError as error:
        raise CannotAskError(next(iter(error.lines()))) from None
    return found


def _trace(trace: "Trace", files: list[Path]) -> dict[str, Any]:
    from gateway.trace import PromptTrace, Recorded

    names = [file.name for file in files]
    if isinstance(trace, PromptTrace):
        ats = [prompt.at for prompt in trace.prompts]
        blocks = sum(len(prompt.blocks) for prompt in trace.prompts)
        found: dict[str, Any] = {"format": "mooncake", "calls": len(ats), "blocks": blocks}
    else:
        calls = [event for event in trace.events if isinstance(event, Recorded)]
        ats = [call.at for call in calls]
        blocks = sum(len(call.blocks) for call in calls)
        found = {"format": "kvgate journal", "calls": len(calls), "blocks": blocks}
        found["several_configs"] = trace.several_configs
    return {"files": names, **found, "hours": round((max(ats) - min(ats)) / 3600, 3)}
