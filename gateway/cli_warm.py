"""What ``kvgate warm FILE`` does: post a job, show how it goes on, and cancel it on Ctrl-C.

The file is YAML or JSON: a list of questions, or what ``POST /v1/cache/warm`` takes. Who runs it
again after it was killed computes what is missing: what is fresh is skipped.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli_remote import (
    DEFAULT_URL,
    NO,
    STOPPED,
    ApiKey,
    CannotAskError,
    Remote,
    Url,
    one_line,
    plain,
    read,
)

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from rich.console import Console

WARM: Final = "/v1/cache/warm"
MOST_FAILURES_SHOWN: Final = 20

Job = Mapping[str, Any]


def warm_command(
    file: Annotated[Path, typer.Argument(help="YAML or JSON: a list of questions, or patterns.")],
    *,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="The ended job, as JSON.")] = False,
) -> None:
    """Have questions answered and stored before anybody asks them. Ctrl-C cancels."""
    from rich.console import Console

    with one_line():
        remote = Remote(url.rstrip("/"), api_key)
        code = warm(file, remote, as_json=as_json, console=Console(stderr=True))
    raise typer.Exit(code)


def follow(remote: Remote, name: str) -> Iterator[Job]:
    """The job each time it has changed, until it has ended. Raises: CannotAskError."""
    path = f"{WARM}/{name}"
    with remote.opened("GET", path, headers={"Accept": "text/event-stream"}) as response:
        if response.status != 200:
            remote.understood(path, response.status, read(remote.url, response))
        while line := _line(remote.url, response):
            if line.startswith(b"data:"):
                yield json.loads(line[5:])


def _line(url: str, response: "HTTPResponse") -> bytes:
    try:
        return read(url, response, one_line=True)
    except CannotAskError:
        raise CannotAskError(
            f"{url} broke off; run the same command again, what is done is skipped", code=NO
        ) from None


def warm(file: Path, remote: Remote, *, as_json: bool, console: "Console") -> int:
    """Warm what the file asks for; returns the exit code. ``console`` shows the progress bar.

    Raises: CannotAskError.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    wish = read_wish(file)
    job: Job = remote.ask("POST", WARM, wish)
    columns = (
        TextColumn("warming"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        TimeRemainingColumn(),
    )
    try:
        hidden = as_json or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=job["counts"]["total"], failed="")

            def show(counts: Mapping[str, int]) -> None:
                failed = f"{counts['failed']} failed" if counts["failed"] else ""
                ended = counts["done"] + counts["skipped"] + counts["failed"]
                progress.update(task, completed=ended, failed=failed)

            job = _last(remote, job, show)
    except KeyboardInterrupt:
        job = remote.ask("DELETE", f"{WARM}/{job['id']}")
        typer.echo(f"cancelled: {_sums(job)}", err=True)
        return STOPPED
    if as_json:
        typer.echo(json.dumps(job, indent=2, ensure_ascii=True))
    else:
        _tell(job)
    return 0 if job["status"] == "done" and not job["counts"]["failed"] else 1


def _last(remote: Remote, job: Job, show: Callable[[Mapping[str, int]], None]) -> Job:
    """Follow a job to its end."""
    for state in follow(remote, job["id"]):
        if "error" in state:
            raise CannotAskError(plain(str(state["error"].get("message"))), code=NO)
        job = state
        show(job["counts"])
    if job["status"] == "running":
        raise CannotAskError(
            f"{remote.url} ends; the job goes on when it is back, or run the same command again",
            code=NO,
        )
    return job


def read_wish(file: Path) -> dict[str, Any]:
    """What a file asks for. Raises: CannotAskError."""
    import yaml

    from gateway.config_file import read_yaml

    try:
        said = read_yaml(file.read_bytes())
    except OSError as error:
        raise CannotAskError(f"{file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "this is no YAML"
        raise CannotAskError(f"{file}{place}: {problem}") from None
    except (ValueError, RecursionError):
        raise CannotAskError(f"{file}: this is no YAML") from None
    if isinstance(said, list):
        return {"questions": said}
    if not isinstance(said, dict):
        raise CannotAskError(f"{file}: must hold a list of questions, or questions: or patterns:")
    return said


def _tell(job: Job) -> None:
    failed = [item for item in job["items"] if item["status"] == "failed"]
    for item in failed[:MOST_FAILURES_SHOWN]:
        question = f" {item['question'][:60]!r}" if item["question"] else ""
        typer.echo(plain(f"failed: {item['item']}{question}: {item['error']['message']}"))
    if len(failed) > MOST_FAILURES_SHOWN:
        typer.echo(f"and {len(failed) - MOST_FAILURES_SHOWN} more; --json shows all")
    typer.echo(f"cancelled elsewhere: {_sums(job)}" if job["status"] != "done" else _sums(job))


def _sums(job: Job) -> str:
    counts, items = job["counts"], job["items"]
    tokens = sum(item.get("tokens", 0) for item in items)
    seconds = sum(item.get("seconds", 0.0) for item in items)
    return (
        f"{counts['done']} computed, {counts['skipped']} were fresh, {counts['failed']} failed, "
        f"{counts['pending']} left ({tokens:,} tokens, {seconds:,.1f} s of computing)"
    )
