"""Users for locust: frequent questions, conversations, shared documents, streams.

``locust -f loadtest/locustfile.py --headless -u 6 -r 3 -t 30s --host http://127.0.0.1:8080``

Beside locust's own options: ``--api-key``, ``--model``, ``--seed``. A request fails on a status
other than 200, without its ``X-Cache-*`` headers, without content, or as a stream without its end.
Streams count twice: ``POST`` is the whole answer, ``TTFT`` the time to its first word. At the end
the hit rates are printed by scenario and level. The exit status is 1 when any request failed.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, cast

from locust import HttpUser, between, events, task
from rich.console import Console
from rich.table import Table

from loadtest.answers import (
    LEVELS,
    BadAnswerError,
    Heard,
    Tally,
    data_of,
    heard,
    heard_stream,
    text_of,
)
from loadtest.workloads import Ask, Conversation, Faq, Habit, SharedDocument, Streaming

PATH: Final = "/v1/chat/completions"
WAIT_S: Final = 120.0

tally: Final = Tally()
_numbers: Final = itertools.count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def add_options(parser: Any) -> None:
    """Options of our own."""
    parser.add_argument(
        "--api-key", env_var="KVGATE_API_KEY", default="", is_secret=True, help="sent as a bearer"
    )
    parser.add_argument("--model", env_var="KVGATE_MODEL", default="default", help="model to ask")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same requests")


class KvgateUser(HttpUser):  # type: ignore[misc]  # locust is untyped here
    """Asks as its habit says, and looks at each answer."""

    abstract = True
    wait_time = between(0.2, 1.0)
    habit_type: ClassVar[type]

    def on_start(self) -> None:
        """A habit of its own for each user, from the seed and the user's number."""
        options = self.environment.parsed_options
        self.habit: Habit = self.habit_type(options.seed * 1000 + next(_numbers))
        self.model: str = options.model
        if options.api_key:
            self.client.headers["Authorization"] = f"Bearer {options.api_key}"

    @task  # type: ignore[untyped-decorator]  # locust is untyped here
    def ask(self) -> None:
        """One request and its answer."""
        ask = self.habit.ask()
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
            except BadAnswerError as error:
                response.failure(str(error))
                self.habit.heard("Sorry.")
                return
            finally:
                response.request_meta["response_time"] = (time.perf_counter() - began_s) * 1000
            response.success()
            tally.add(ask.scenario, answer.level)
            self.habit.heard(answer.text)

    def listen(self, ask: Ask, response: Any, began_s: float) -> Heard:
        """The answer, read to its end. Raises: BadAnswerError."""
        headers = cast(Mapping[str, str], response.headers)
        if not ask.stream:
            return heard(response.status_code, headers, response.content or b"")
        lines = self.timed(ask, response.iter_lines(decode_unicode=True), began_s)
        return heard_stream(response.status_code, headers, lines)

    def timed(self, ask: Ask, lines: Iterator[str], began_s: float) -> Iterator[str]:
        """The lines, and an event of locust's when the first word is among them."""
        waiting = True
        for line in lines:
            data = data_of(line)
            if waiting and data is not None and data.startswith("{") and text_of(data):
                waiting = False
                self.environment.events.request.fire(
                    request_type="TTFT",
                    name=ask.scenario,
                    response_time=(time.perf_counter() - began_s) * 1000,
                    response_length=0,
                    exception=None,
                    context={},
                )
            yield line


class FaqUser(KvgateUser):
    """Asks what many ask."""

    habit_type = Faq


class ConversationUser(KvgateUser):
    """Talks."""

    habit_type = Conversation


class DocumentUser(KvgateUser):
    """Asks about tables."""

    habit_type = SharedDocument


class StreamingUser(KvgateUser):
    """Reads along."""

    habit_type = Streaming


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def hand_over(data: dict[str, Any], **_: Any) -> None:
    """A worker of locust's gives its counts to the master."""
    data["levels"] = tally.take()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def take_over(data: dict[str, Any], **_: Any) -> None:
    """The master takes them."""
    for scenario, level, count in data.get("levels", ()):
        tally.add(scenario, level, count)


@events.quitting.add_listener  # type: ignore[untyped-decorator]  # locust is untyped here
def print_hit_rates(**_: Any) -> None:
    """The table at the end."""
    rows = tally.rows()
    if not rows:
        return
    shown = Table(title="hit rates")
    shown.add_column("scenario")
    for name in ("answers", *LEVELS, "hit rate"):
        shown.add_column(name, justify="right")
    for scenario, answers, shares in rows:
        parts = (f"{shares[level]:.1%}" for level in LEVELS)
        shown.add_row(scenario, str(answers), *parts, f"{1 - shares['none']:.1%}")
    Console().print(shown)
