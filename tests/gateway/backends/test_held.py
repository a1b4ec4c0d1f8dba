"""Which backend holds what a response goes on from."""

from typing import Any

import pytest

from gateway.backends import held as module
from gateway.backends.held import LONGEST, Held, does_not_know, ids_in, is_kept, named_in
from gateway.chunks import Chunk, Piece, Whole
from tests.kit.entries import asked
from tests.kit.scripted_backend import failed, opening


def call_of(**body: Any) -> Any:
    return asked(endpoint="responses", input="Hi", **body)[0]


def test_a_holder_is_remembered_and_told_once() -> None:
    held = Held()
    told: list[tuple[list[str], str]] = []
    held.told = lambda ids, name: told.append((list(ids), name))
    assert held.holder(["r1"]) is None
    held.note(["r1", "c1"], "a")
    held.note(["r1", "r2"], "a")
    held.hear(["r3"], "b")
    assert [held.holder([one]) for one in ("r1", "c1", "r2", "r3")] == ["a", "a", "a", "b"]
    assert held.holder(["nothing", "r3"]) == "b"
    assert told == [(["r1", "c1"], "a"), (["r2"], "a")]
    assert repr(held) == "<Held 4 ids>"


def test_memory_is_bounded_and_what_is_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    held = Held()
    for one in ("r1", "r2", "r3"):
        held.note([one], "a")
    held.note(["r1"], "a")
    held.note(["r4", "x" * (LONGEST + 1)], "a")
    assert [held.holder([one]) for one in ("r1", "r2", "r4")] == ["a", None, "a"]
    assert held.holder(["x" * (LONGEST + 1)]) is None


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ({"previous_response_id": "r"}, ["r"]),
        ({"conversation": "c"}, ["c"]),
        ({"conversation": {"id": "c"}, "previous_response_id": None}, ["c"]),
        ({"previous_response_id": 5, "conversation": {}}, []),
        ({}, []),
    ],
)
def test_a_call_names_what_it_goes_on_from(body: dict[str, Any], ids: list[str]) -> None:
    assert named_in(call_of(**body)) == ids
    assert named_in(asked(**body)[0]) == []  # a chat carries its own past


def test_what_is_kept_is_what_the_api_keeps() -> None:
    assert is_kept(call_of())
    assert not is_kept(call_of(store=False))
    assert is_kept(asked(store=True)[0])
    assert not is_kept(asked()[0])
    assert not is_kept(asked(endpoint="embeddings", input="x", store=True)[0])


@pytest.mark.parametrize(
    ("piece", "ids"),
    [
        (Whole({"id": "r", "conversation": {"id": "c"}}), ["r", "c"]),
        (Chunk({"type": "response.created", "response": {"id": "r"}}), ["r"]),
        (Chunk({"id": "chatcmpl-1", "choices": []}), ["chatcmpl-1"]),
        (Chunk({"type": "response.output_text.delta", "delta": "x"}), []),
        (opening(), []),
    ],
)
def test_an_answer_says_under_what_it_is_kept(piece: Piece, ids: list[str]) -> None:
    assert ids_in(piece) == ids


@pytest.mark.parametrize(
    ("status", "more", "unknown"),
    [
        (404, {}, True),
        (400, {"code": "previous_response_not_found"}, True),
        (400, {"param": "previous_response_id"}, True),
        (400, {"message": "Response with id 'r' not found."}, True),
        (400, {"code": "invalid_value"}, False),
        (500, {"message": "not found"}, False),
    ],
)
def test_a_refusal_may_mean_that_another_holds_it(
    status: int, more: dict[str, Any], *, unknown: bool
) -> None:
    assert does_not_know(failed(status, **more)) is unknown
