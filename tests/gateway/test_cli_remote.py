"""One way to ask a running gateway, and one line when that cannot be."""

import socket
from typing import Any

import pytest
import typer

from gateway.cli_remote import NO, NOT_ASKED, STOPPED, CannotAskError, Remote, one_line, plain
from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    error_reply,
    json_reply,
    stream_reply,
)
from tests.kit.threads import in_thread

KEY = "kv-3f1c7a90b2d84e65a1c0"


async def ask(reply: Any, path: str = "/models", body: Any = None) -> Any:
    async with ScriptedUpstream(reply) as other:
        url = other.url.removesuffix("/v1")
        method = "GET" if body is None else "POST"
        return await in_thread(lambda: Remote(url, KEY).ask(method, path, body))


async def test_what_it_answers_is_json() -> None:
    assert await ask(json_reply({"a": 1}), "/v1/chat/completions", {"model": "m"}) == {"a": 1}


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (error_reply(401, "no"), NOT_ASKED, "wants an API key it knows"),
        (error_reply(404, "no \x1b[31msuch entry"), NO, "no \\x1b[31msuch entry"),
        (
            json_reply({"error": {"message": "is odd", "param": "ttl"}}, status=400),
            NO,
            "ttl: is odd",
        ),
        (Reply((b"<html>",), status=404), NOT_ASKED, "answered 404; is this kvgate?"),
        (Reply((b"<html>",)), NOT_ASKED, "something else than JSON"),
        (json_reply({"error": None}, status=500), NOT_ASKED, "answered 500; is this kvgate?"),
        (json_reply([], status=500), NOT_ASKED, "answered 500; is this kvgate?"),
    ],
)
async def test_every_other_answer_is_one_line(reply: Reply, code: int, said: str) -> None:
    with pytest.raises(CannotAskError) as caught:
        await ask(reply, "/v1/chat/completions", {"model": "m"})
    assert said in str(caught.value)
    assert (caught.value.code, caught.value.status) == (code, reply.status)
    assert "\n" not in str(caught.value)


async def test_an_answer_that_breaks_off_is_told() -> None:
    with pytest.raises(CannotAskError, match="broke off in the middle"):
        await ask(stream_reply(b"data: {", "rst"), "/v1/chat/completions", {"model": "m"})


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://", "127.0.0.1:8080", "http://h:x"])
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(CannotAskError, match="is no address"):
        Remote(url).ask("GET", "/")


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CannotAskError, match=r"is `kvgate serve` running there\?") as caught:
        Remote(url).ask("GET", "/")
    assert caught.value.code == NOT_ASKED


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(Remote("http://h", KEY))


def test_failures_become_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code in ((CannotAskError("so", code=NO), NO), (KeyboardInterrupt(), STOPPED)):
        with pytest.raises(typer.Exit) as caught, one_line():
            raise error
        assert caught.value.exit_code == code
    assert capsys.readouterr().err == "kvgate: so\n"


def test_text_is_shown_without_controls() -> None:
    assert plain("a\x1b[2Jb") == "a\\x1b[2Jb"
    assert plain(5) == "5"
