"""A job as data: what clients and records see of it."""

import json

import orjson
import pytest

from gateway.warming_call import Warmed
from gateway.warming_job import Job, read_job
from policies.keys import Principal
from policies.warming import Item
from tests.kit.kitchen import items

WHO = Principal("acme", user="alice", trusted=True)


def job_of(*questions: object) -> Job:
    return Job("warm-1", WHO, 1000.0, items(*questions))


def test_it_counts_where_its_questions_stand() -> None:
    job = job_of("One?", "Two?", "Three?", "Four?", "Five?")
    job.places[:4] = [Warmed("done"), Warmed("failed"), Warmed("skipped"), "running"]
    assert job.counts() == {
        "total": 5, "done": 1, "skipped": 1, "failed": 1, "running": 1, "pending": 1,
    }  # fmt: skip
    assert repr(job) == (
        "<Job warm-1 running: 5 total, 1 done, 1 skipped, 1 failed, 1 running, 1 pending>"
    )


def test_a_client_sees_each_question_and_what_became_of_it() -> None:
    job = job_of("One?", {"role": "user", "content": [{"type": "text", "text": "?"}]}, "x" * 500)
    job.places[0] = Warmed("done", "k1", 7, 1.23456)
    job.places[1] = Warmed("failed", None, code="c", message="m")
    shown = job.shown()
    assert shown["items"] == [
        {
            "pattern": "questions", "item": "questions[0]", "question": "One?", "status": "done",
            "key": "k1", "tokens": 7, "seconds": 1.235, "error": None,
        },
        {
            "pattern": "questions", "item": "questions[1]", "question": None, "status": "failed",
            "key": None, "tokens": 0, "seconds": 0.0, "error": {"code": "c", "message": "m"},
        },
        {
            "pattern": "questions", "item": "questions[2]", "question": "x" * 120,
            "status": "pending",
        },
    ]  # fmt: skip
    assert {**shown, "items": None} == {**job.summary(), "items": None}
    assert "acme" not in str(shown)


def test_it_ends_with_nothing_half_done() -> None:
    job = job_of("One?", "Two?")
    job.places = [Warmed("done"), "running"]
    job.end("cancelled", 2000.0)
    assert (job.status, job.finished_at, job.ended) == ("cancelled", 2000.0, True)
    assert job.places == [Warmed("done"), "pending"]


def test_records_give_back_what_was_written() -> None:
    job = job_of("One?", {"question": "Two?", "ttl": 60})
    job.places[0] = Warmed("failed", "k", 3, 0.5, "c", "m")
    assert read_job(job.wish(), job.state()) == job
    fresh = read_job(job.wish(), None)
    assert fresh is not None
    assert (fresh.status, fresh.places) == ("running", ["pending", "pending"])


def test_the_record_of_a_job_that_ended_holds_its_state_and_no_text() -> None:
    job = job_of("One?", "Two?")
    job.places[0] = Warmed("failed", "k", 3, 0.5, "c", "m")
    job.end("done", 2000.0)
    assert b"One?" not in job.wish()
    found = read_job(job.wish(), job.state())
    assert found is not None
    assert (found.status, found.finished_at, found.places) == ("done", 2000.0, job.places)


@pytest.mark.parametrize(
    ("wish", "state"),
    [
        (b"not JSON", None),
        (b"[]", None),
        (b"{}", None),
        (orjson.dumps({"id": "x", "principal": {"who": 1}, "created_at": 1, "items": []}), None),
        (job_of("One?").wish(), b"{}"),
        (job_of("One?").wish(), job_of("One?", "Two?").state()),
        (job_of("One?").wish(), orjson.dumps({"places": [[1, 2, 3, 4, 5, 6, 7, 8]]})),
    ],
)
def test_what_this_version_did_not_write_is_no_job(wish: bytes, state: bytes | None) -> None:
    assert read_job(wish, state) is None


def test_a_record_holds_the_base_once_and_gives_it_back() -> None:
    base = [{"role": "system", "content": "x" * 1000}]
    last = {"messages": [{"role": "user", "content": "?"}]}
    items = [Item("p", f"variations[{number}]", last, base) for number in range(100)]
    job = Job("warm-1", Principal("a"), 1.0, items)
    assert len(job.wish()) < 20_000
    found = read_job(job.wish(), job.state())
    assert found is not None
    assert found.items == tuple(items)
    assert found.items[0].base is found.items[99].base


def test_a_record_of_an_older_version_is_still_read() -> None:
    old = {
        "id": "warm-1",
        "principal": {"tenant": "a"},
        "created_at": 1.0,
        "items": [["p", "w", {"messages": [{"role": "user", "content": "?"}]}]],
    }
    found = read_job(json.dumps(old).encode(), None)
    assert found is not None
    assert found.items[0].body == {"messages": [{"role": "user", "content": "?"}]}
