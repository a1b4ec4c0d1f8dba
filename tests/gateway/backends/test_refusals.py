"""The words of an upstream's error, of whatever shape; the whole table is in the scenarios."""

import json
from typing import Any

import pytest

from gateway.backends import refusals
from gateway.errors import BackendFault, ClientFault, GatewayError


def refused(status: int, body: Any, **more: Any) -> GatewayError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return refusals.refused("up", status, raw, {}, now=None, **more)


def test_an_error_in_openais_shape_is_passed_on_as_it_came() -> None:
    error = {"message": "a\nb", "type": "t", "param": "p", "code": 7, "more": [1]}
    body = {"error": error, "user_id": "u"}
    found = refused(400, body)
    assert isinstance(found, ClientFault)
    assert (found.message, found.code, found.param, found.body()) == ("a\nb", "7", "p", body)


def test_members_that_an_error_lacks_are_added() -> None:
    found = refused(503, {"error": {"message": "busy"}})
    assert found.body() == {
        "error": {"message": "busy", "type": "server_error", "param": None, "code": None}
    }


def test_a_flat_error_keeps_its_type_and_code_under_openais_names() -> None:
    body = {"object": "error", "message": "too long", "type": "BadRequest", "code": 400, "id": "x"}
    assert refused(400, body).body()["error"] == {
        "message": "too long", "type": "BadRequest", "param": None, "code": 400, "id": "x",
    }  # fmt: skip


def test_a_complaint_about_a_field_names_it() -> None:
    body = {"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "bad role"}]}
    found = refused(422, body)
    assert (found.param, found.body()["error"]["param"]) == ("messages.0.role",) * 2


def test_words_are_bounded() -> None:
    for body in (b"x" * 9000, {"error": "x" * 9000}, {"detail": ["x" * 9000]}):
        assert len(refused(500, body).message) == refusals.LONGEST_WORDS + 1


def test_an_error_that_is_nested_without_end_is_an_error_all_the_same() -> None:
    body = b'{"error":' * 200 + b"1" + b"}" * 200
    assert refused(500, body).status == 500
    assert refused(500, b"[" * 5000).status == 500


@pytest.mark.parametrize("status", [401, 402, 403])
def test_no_part_of_the_operators_key_is_among_the_words(status: int) -> None:
    key = "c0ffee-f00d-1234"
    for quoted in (key, "c0ff...", "...1234", "c0***34", "sk-proj-x", "key_8"):
        body = {"error": {"message": f"Incorrect key provided: {quoted}, see your account"}}
        found = refused(status, body, secret=key)
        assert isinstance(found, BackendFault)
        assert "Incorrect key provided" in found.message
        assert quoted not in found.message


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"choices": []}, False),
        ({"choices": [], "error": None}, False),
        ({"choices": [], "error": {}}, False),
        ({"choices": [], "message": "hello"}, False),
        ({"choices": [], "error": "x"}, True),
        ({"object": "response", "error": {"message": "x"}}, False),
        ({"type": "response.output_text.delta", "message": "x"}, False),
        ({"type": "error", "message": "x"}, True),
        ({"error": {}}, True),
        ({"error": None}, False),
        ({"status": "working"}, False),
        ({}, False),
        ([], False),
        ([{"error": {}}], True),
        ([1], False),
        ("x", False),
    ],
)  # fmt: skip
def test_what_tells_an_error_under_a_success(value: Any, said: bool) -> None:
    assert refusals.is_error(value) is said


def test_a_cut_tells_what_came_in_place_of_events() -> None:
    assert refusals.cut("up").message == "up ended its stream too early"
    assert refusals.cut("up", b"oh no").message == "up ended its stream too early: oh no"
