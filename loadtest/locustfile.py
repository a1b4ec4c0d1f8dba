"""Users for locust: frequent questions, talks, documents, streams, stampedes, batches, tenants.

``locust -f loadtest/locustfile.py --headless -u 100 -r 20 -t 60s --host http://127.0.0.1:8080``

All kinds together are the mixed scenario; naming some (``FaqUser StreamingUser``) asks those alone.
Beside locust's own options: ``--api-key``, ``--model``, ``--seed``, ``--tenant-keys A,B`` (without it
tenants are users of one tenant), ``--watch-pid PID`` (kvgate's process: its memory is sampled) and
``--report STEM`` (writes STEM.json and STEM.md at the end).

A request fails on a status other than 200, without its ``X-Cache-*`` headers, without content, as a
stream without its end, or with a key that another tenant's answer had. In locust's table the
``POST`` lines are the requests; beside them, not counted in its sums, stand ``TTFT`` (a stream's time
to its first word), ``FROM response``, ``prefix``, ``collapsed``, ``none`` (the same answers by where
they came from) and ``END stop`` or ``length`` (by how they ended). Where answers came from is printed at the
end. The exit status is 1 when any request failed.
"""

import itertools
import json
import shlex
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from locust import HttpUser, between, events, task
from locust.runners import WorkerRunner
from rich.console import Console
from rich.table import Table

from loadtest import locust_report, report
from loadtest.answers import BadAnswerError, Heard, data_of, heard, heard_stream, text_of
from loadtest.locust_report import Times
from loadtest.memory import held_mib
from loadtest.tally import PLACES, Tally, Walls
from loadtest.workloads import (
    Ask,
    Batch,
    Conversation,
    Faq,
    Habit,
    SharedDocument,
    Stampede,
    Streaming,
    Tenants,
)

PATH: Final = "/v1/chat/completions"
WAIT_S: Final = 120.0
SAMPLE_S: Final = 0.5
FROM: Final = "FROM "
OPEN_TENANTS: Final = 3
"""How many users of one tenant play tenants where no keys are given."""

tally: Final = Tally()
walls: Final = Walls()
memory: Final[dict[str, list[tuple[float, float]]]] = {}
_numbers: Final = itertools.count()
_before: Final[dict[str, Any]] = {}
COUNTED: Final = ("savings", "prompt_tokens", "prompt_tokens_reused")
"""Of the gateway's statistics, what the report is made of."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def add_options(parser: Any) -> None:
    """Options of our own."""
    parser.add_argument(
        "--api-key", env_var="KVGATE_API_KEY", default="", is_secret=True, help="sent as a bearer"
    )
    parser.add_argument(
        "--tenant-keys", env_var="KVGATE_TENANT_KEYS", default="", is_secret=True,
        help="comma-separated API keys, one for each tenant",
    )  # fmt: skip
    parser.add_argument("--model", env_var="KVGATE_MODEL", default="default", help="model to ask")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same requests")
    parser.add_argument("--watch-pid", type=int, default=0, help="kvgate's process id")
    parser.add_argument("--note", default="", help="stands in the report, as all of the command")
    parser.add_argument("--report", default="", help="write STEM.json and STEM.md at the end")


class KvgateUser(HttpUser):  # type: ignore[misc]  # locust is untyped here
    """Asks as its habit says, and looks at each answer."""

    abstract = True
    wait_time = between(0.2, 1.0)
    habit_type: ClassVar[type]

    def on_start(self) -> None:
        """A habit of its own for each user, from the seed and the user's number."""
        options = self.environment.parsed_options
        self.number = next(_numbers)
        self.habit: Habit = self.made(options.seed * 1000 + self.number)
        self.model: str = options.model
        self.whose = ""
        if options.api_key:
            self.client.headers["Authorization"] = f"Bearer {options.api_key}"

    def made(self, seed: int) -> Habit:
        """The habit."""
        return cast(Habit, self.habit_type(seed))

    @task  # type: ignore[untyped-decorator]  # locust is untyped here
    def ask(self) -> None:
        """One request and its answer."""
        ask = self.habit.ask()
        tally.ask(ask.scenario)
        began_s = time.perf_counter()
        with self.client.post(
            PATH,
            json=ask.body(self.model),
            headers=dict(ask.headers),
            name=ask.scenario,
            stream=ask.stream,
            timeout=WAIT_S,
            catch_response=True,
        ) as response:
            try:
                answer = self.listen(ask, response, began_s)
                self.judge(answer)
            except BadAnswerError as error:
                response.failure(str(error))
                self.habit.heard("Sorry.")
                return
            finally:
                took_ms = (time.perf_counter() - began_s) * 1000
                response.request_meta["response_time"] = took_ms
            response.success()
        self.count(ask, answer, took_ms)
        self.habit.heard(answer.text)

    def listen(self, ask: Ask, response: Any, began_s: float) -> Heard:
        """The answer, read to its end. Raises: BadAnswerError."""
        headers = cast(Mapping[str, str], response.headers)
        if not ask.stream:
            return heard(response.status_code, headers, response.content or b"")
        lines = self.timed(ask, response.iter_lines(decode_unicode=True), began_s)
        return heard_stream(response.status_code, headers, lines)

    def judge(self, answer: Heard) -> None:
        """Raises: BadAnswerError when the answer's key was another tenant's."""
        if (owner := walls.breached_by(self.whose, answer.key)) is not None:
            raise BadAnswerError(f"the key {answer.key} of {self.whose!r} was {owner!r}'s before")

    def count(self, ask: Ask, answer: Heard, took_ms: float) -> None:
        """Where the answer came from and how it ended, in locust's table and in ours."""
        tally.add(ask.scenario, answer.place, tokens=answer.tokens_saved)
        self.note(FROM + answer.place, ask.scenario, took_ms)
        self.note(f"END {answer.ending}", "all", took_ms)

    def note(self, kind: str, name: str, took_ms: float) -> None:
        """A line of locust's table that its sums leave out."""
        self.environment.stats.get(name, kind).log(took_ms, 0)

    def timed(self, ask: Ask, lines: Iterator[str], began_s: float) -> Iterator[str]:
        """The lines; the time of the first word is noted when it is among them."""
        waiting = True
        for line in lines:
            data = data_of(line)
            if waiting and data is not None and data.startswith("{") and text_of(data):
                waiting = False
                self.note("TTFT", ask.scenario, (time.perf_counter() - began_s) * 1000)
            yield line


class FaqUser(KvgateUser):
    """Asks what many ask."""

    weight = 3
    habit_type = Faq


class ConversationUser(KvgateUser):
    """Talks."""

    weight = 3
    habit_type = Conversation


class DocumentUser(KvgateUser):
    """Asks about tables."""

    weight = 2
    habit_type = SharedDocument


class StreamingUser(KvgateUser):
    """Reads along."""

    weight = 2
    habit_type = Streaming


class StampedeUser(KvgateUser):
    """Asks the same as all of its kind, at the same moment."""

    habit_type = Stampede

    def made(self, seed: int) -> Habit:
        """The habit, by the wall clock."""
        self.stampede = Stampede(seed, now=time.time)
        return self.stampede

    def wait_time(self) -> float:
        """Until the next one."""
        return self.stampede.until_next_s()


class BatchUser(KvgateUser):
    """Works through lists."""

    habit_type = Batch


class TenantUser(KvgateUser):
    """One of several tenants, or of several users where no keys of tenants are given."""

    habit_type = Tenants

    def on_start(self) -> None:
        """Its own key, or its own name."""
        super().on_start()
        keys = [key for key in self.environment.parsed_options.tenant_keys.split(",") if key]
        if keys:
            self.whose = f"tenant {self.number % len(keys)}"
            self.client.headers["Authorization"] = f"Bearer {keys[self.number % len(keys)]}"
        else:
            self.whose = f"user-{self.number % OPEN_TENANTS}"
            self.client.headers |= {"X-Cache-User": self.whose, "X-Cache-Scope": "user"}


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def hand_over(data: dict[str, Any], **_: Any) -> None:
    """A worker of locust's gives its counts to the master."""
    data["places"] = tally.take()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def take_over(data: dict[str, Any], **_: Any) -> None:
    """The master takes them."""
    tally.give(data.get("places", ()))


@events.test_start.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def begin(environment: Any, **_: Any) -> None:
    """Remember what was saved before, and watch the memory from now on."""
    if isinstance(environment.runner, WorkerRunner):
        return
    _before["gateway"] = _counted(environment)
    memory.clear()
    if pid := environment.parsed_options.watch_pid:
        threading.Thread(target=_watch, args=(environment, pid), daemon=True).start()


@events.quitting.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def finish(environment: Any, **_: Any) -> None:
    """The table at the end, and the report where one is wanted."""
    rows = tally.rows()
    if not rows or isinstance(environment.runner, WorkerRunner):
        return
    Console(width=100).print(places(rows))
    for name, found in locust_report.trends_of(memory).items():
        print(
            f"{name}: {found.mean_mib:.0f} MiB in the second half, "
            f"{found.slope_mib_per_min:+.1f} MiB/min"
        )
    options = environment.parsed_options
    if options.report:
        write(environment, options.report)


def places(rows: list[Any]) -> Table:
    """What people read."""
    shown = Table(title="where answers came from")
    shown.add_column("scenario")
    for name in ("answers", *PLACES, "tokens saved"):
        shown.add_column(name, justify="right")
    for row in rows:
        parts = (f"{row.shares[place]:.1%}" for place in PLACES)
        shown.add_row(row.scenario, str(row.answers), *parts, str(row.tokens_saved))
    return shown


def write(environment: Any, stem: str) -> None:
    """STEM.json and STEM.md."""
    after, before = _counted(environment), _before.get("gateway")
    total = environment.stats.total
    made = locust_report.content(
        rows=tally.rows(),
        times=_times(environment.stats),
        failures=total.num_failures,
        requests=total.num_requests,
        gateway=None if after is None else locust_report.difference(before, after),
        memory=memory,
        users=environment.parsed_options.num_users or 0,
    )
    known = {**report.facts("locust"), "command": _command(environment.parsed_options)}
    Path(f"{stem}.json").write_text(json.dumps({**known, **made}, indent=1) + "\n")
    Path(f"{stem}.md").write_text(locust_report.markdown(known, made, tally.rows()))
    print(f"written to {stem}.json and {stem}.md")


def _command(options: Any) -> str:
    """As it was called, without its secrets and without our folders."""
    said = shlex.join(["locust", *sys.argv[1:]])
    for secret in (options.api_key, *options.tenant_keys.split(",")):
        said = said.replace(secret, "***") if secret else said
    return said


def _times(stats: Any) -> dict[tuple[str, str], Times]:
    found = {}
    for (name, kind), entry in stats.entries.items():
        if kind.startswith(FROM) and entry.num_requests:
            found[name, kind.removeprefix(FROM)] = Times(
                entry.num_requests,
                float(entry.median_response_time),
                float(entry.get_response_time_percentile(0.95)),
            )
    return found


def _watch(environment: Any, pid: int) -> None:
    began_s = time.monotonic()
    while environment.runner is not None and environment.runner.state not in {
        "stopped",
        "stopping",
    }:
        try:
            for name, held in held_mib(pid).items():
                memory.setdefault(name, []).append((time.monotonic() - began_s, held))
        except OSError:
            return  # it is gone, or this system does not say
        time.sleep(SAMPLE_S)


def _counted(environment: Any) -> dict[str, Any] | None:
    """What the gateway counted and saved so far; None where it does not tell us."""
    options = environment.parsed_options
    request = urllib.request.Request(f"{environment.host}/v1/cache/stats")
    if options.api_key:
        request.add_header("Authorization", f"Bearer {options.api_key}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.load(answer)
            return {name: found[name] for name in COUNTED}
    except (OSError, ValueError, LookupError):
        return None
