"""``kvgate stats``: a table for people, the gateway's own words for programs."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway import cli

GOOD_KEY = "kv-3f1c7a90b2d84e65a1c0"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, prog_name="kvgate")


COUNTED = {
    "requests": 1234, "hits": 900, "hit_rate": 0.7293, "stored_answers": 617, "stored_rate": 0.5,
    "prompt_tokens": 2000, "prompt_tokens_reused": 500, "reuse_rate": 0.25, "tokens_saved": 99,
    "seconds_saved": 12.34, "money_saved": 0.5,
}  # fmt: skip
STATS = {
    **COUNTED,
    "levels": {"response": COUNTED},
    "tiers": {"hot": {**COUNTED, "entries": 3}},
    "models": {"[red]m\x1b[2J": COUNTED},
    "tenants": {},
}


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], tuple[str, list[Any]]]]:
    """Starts something that answers every GET with this status and body."""
    servers: list[tuple[HTTPServer, threading.Thread]] = []

    def start(status: int, body: bytes, **headers: str) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers["Authorization"]))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_stats_are_a_table(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    url, asked = answering(200, json.dumps(STATS).encode())
    done = invoke("stats", "--url", url + "/", "--api-key", GOOD_KEY)
    assert done.exit_code == 0, done.output
    assert asked == [("/v1/cache/stats", f"Bearer {GOOD_KEY}")]
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert rows[:2] == [
        "answers from the store 50.0% (617 of 1,234 calls)",
        "prompt tokens reused 25.0% (500 of 2,000 sent to backends)",
    ]
    numbers = "1,234 50.0% 25.0% 99 12.3 0.5000"
    for name in ("all", "level response", "tier hot", "model [red]m\\x1b[2J"):
        assert f"{name} {numbers}" in rows
    assert "\x1b" not in done.stdout
    assert "72.9%" not in done.stdout, "the two are never added up"
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_a_narrow_terminal_cuts_no_number(
    columns: str, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    huge = dict.fromkeys(COUNTED, 123_456_789_012_345) | {
        "seconds_saved": 123_456_789_012.3, "money_saved": 123_456_789.1234,
        "stored_rate": 0.851, "reuse_rate": 0.676,
    }  # fmt: skip
    long = "organisation/a-model-with-a-name-longer-than-the-terminal-is-wide-instruct-q8_0"
    url, _ = answering(200, json.dumps({**STATS, **huge, "models": {long: huge}}).encode())
    said = invoke("stats", "--url", url).stdout
    assert "…" not in said
    rows = [" ".join(line.split()) for line in said.splitlines()]
    numbers = (
        "123,456,789,012,345 85.1% 67.6% 123,456,789,012,345 123,456,789,012.3 123,456,789.1234"
    )
    assert [row.endswith(numbers) for row in rows].count(True) == 2
    assert long in said.replace(" ", "").replace("\n", "")


def test_stats_of_one_tenant_are_one_row(answering: Any) -> None:
    url, _ = answering(200, json.dumps({"tenant": "acme", **COUNTED}).encode())
    assert "acme" in invoke("stats", "--url", url).stdout


def test_stats_as_json_are_what_the_gateway_says(answering: Any) -> None:
    url, _ = answering(200, json.dumps(STATS).encode())
    assert json.loads(invoke("stats", "--url", url, "--json").stdout) == STATS


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (401, b"{}", "wants an API key it knows: --api-key or KVGATE_API_KEY"),
        (404, b"{}", "/v1/cache/stats answered 404; is this kvgate?"),
        (200, b"<html>", "/v1/cache/stats answered something else than JSON"),
        (302, b"", "/v1/cache/stats answered 302"),
    ],
)
def test_stats_that_cannot_be_had_are_one_line(
    status: int, body: bytes, line: str, answering: Any
) -> None:
    url, asked = answering(status, body, Location="http://127.0.0.1:9/")
    done = invoke("stats", "--url", url)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"kvgate: {url}")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(asked) == 1


def test_nobody_listening_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = invoke("stats", "--url", url)
    assert done.exit_code == 2
    assert "is `kvgate serve` running there?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_something_else_than_http_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as strange:

        def answer() -> None:
            connection, _ = strange.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-x\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        done = invoke("stats", "--url", f"http://127.0.0.1:{strange.getsockname()[1]}")
        thread.join()
    assert done.exit_code == 2
    assert "is this kvgate?" in done.stderr


def test_an_address_without_a_scheme_is_one_line() -> None:
    done = invoke("stats", "--url", "file:///etc/passwd")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
