"""``kvgate warm FILE``: post a job, show how it goes on, and cancel it on Ctrl-C.

The file is YAML or JSON: a list of questions, or what ``POST /v1/cache/warm`` takes. Who runs it
again after it was killed computes what is missing: what is fresh is skipped.
"""

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.logs import escaped

WARM: Final = "/v1/cache/warm"
TIMEOUT_S: Final = 60.0
"""Longer than the gateway is ever silent about a running job."""
MOST_FAILURES_SHOWN: Final = 20
STOPPED: Final = 130

Job = Mapping[str, Any]


class CannotWarmError(Exception):
    """One line that says why."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A running gateway."""

    url: str
    api_key: str | None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON it answers. Raises: CannotWarmError."""
        with self._open(method, path, "application/json", body) as response:
            return self._understood(response.status, _read(self.url, response))

    def follow(self, name: str) -> Iterator[Job]:
        """The job each time it has changed, until it has ended. Raises: CannotWarmError."""
        with self._open("GET", f"{WARM}/{name}", "text/event-stream") as response:
            if response.status != 200:
                self._understood(response.status, _read(self.url, response))
            while line := _read(self.url, response, one_line=True):
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

    @contextmanager
    def _open(
        self, method: str, path: str, accept: str, body: Any = None
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise CannotWarmError(
                f"{self.url} is no address: it must start with http:// or https://"
            )
        headers = {"Accept": accept, "Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body, default=str).encode()
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        with closing(kind(parts.hostname, parts.port, timeout=TIMEOUT_S)) as connection:
            try:
                connection.request(method, parts.path.rstrip("/") + path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise CannotWarmError(
                    f"{self.url} does not answer ({why}); is `kvgate serve` running there?"
                ) from None
            with response:
                yield response

    def _understood(self, status: int, said: bytes) -> Any:
        try:
            answer = json.loads(said)
        except ValueError:
            raise CannotWarmError(f"{self.url} answered {status}; is this kvgate?") from None
        if status < 300:
            return answer
        if status == 401:
            raise CannotWarmError(
                f"{self.url} wants an API key it knows: --api-key or KVGATE_API_KEY"
            )
        try:
            error = answer["error"]
            message, param = str(error["message"]), error.get("param")
        except (TypeError, KeyError):
            raise CannotWarmError(f"{self.url} answered {status}; is this kvgate?") from None
        named = f"{param}: " if param and str(param) not in message else ""
        raise CannotWarmError(escaped(f"{named}{message}"))


def _read(url: str, response: http.client.HTTPResponse, *, one_line: bool = False) -> bytes:
    try:
        return response.readline() if one_line else response.read()
    except (OSError, http.client.HTTPException, ValueError):
        raise CannotWarmError(
            f"{url} broke off; run the same command again, what is done is skipped"
        ) from None


def warm(file: Path, remote: Remote, *, as_json: bool, console: Console) -> int:
    """Warm what the file asks for; returns the exit code. ``console`` shows the progress bar.

    Raises: CannotWarmError.
    """
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
    for state in remote.follow(job["id"]):
        if "error" in state:
            raise CannotWarmError(escaped(str(state["error"].get("message"))))
        job = state
        show(job["counts"])
    if job["status"] == "running":
        raise CannotWarmError(
            f"{remote.url} ends; the job goes on when it is back, or run the same command again"
        )
    return job


def read_wish(file: Path) -> dict[str, Any]:
    """What a file asks for. Raises: CannotWarmError."""
    try:
        said = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise CannotWarmError(f"{file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "this is no YAML"
        raise CannotWarmError(f"{file}{place}: {problem}") from None
    except (ValueError, RecursionError):
        raise CannotWarmError(f"{file}: this is no YAML") from None
    if isinstance(said, list):
        return {"questions": said}
    if not isinstance(said, dict):
        raise CannotWarmError(f"{file}: must hold a list of questions, or questions: or patterns:")
    return said


def _tell(job: Job) -> None:
    failed = [item for item in job["items"] if item["status"] == "failed"]
    for item in failed[:MOST_FAILURES_SHOWN]:
        question = f" {item['question'][:60]!r}" if item["question"] else ""
        typer.echo(escaped(f"failed: {item['item']}{question}: {item['error']['message']}"))
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
