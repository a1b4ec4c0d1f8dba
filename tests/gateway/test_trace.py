"""Traces are known by their content, put in order, and refused in one line that names the place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.trace import (
    ClearedLine,
    Event,
    JournalTrace,
    Prompt,
    PromptTrace,
    Recorded,
    StoredLine,
    TraceError,
    read,
    with_siblings,
)
from tests.kit.journals import begun, configured, hashed, hit, missed, stored, write

MOONCAKE = '{"timestamp": 1500, "input_length": 700, "output_length": 9, "hash_ids": [1, 2]}\n'


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    events: list[Event] = [
        missed(1.0, "a", blocks=[hashed("x")], conversation="c", turn=2),
        stored(2.0, "a"),
        hit(3.0, "a", stored_at=2.0),
        ClearedLine(at=4.0, keys=[hashed("a")]),
    ]
    begin = begun(shares={"t": 5}, engine_kv_bytes=7)
    found = read([write(tmp_path / "j", events, begin)])
    assert found == JournalTrace(begin, events, several_configs=False)
    assert [one.computed for one in events if isinstance(one, Recorded)] == [True, False]


def test_mooncakes_format_is_known_by_its_content_plain_or_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "any.name", tmp_path / "t.jsonl.gz"
    plain.write_text(MOONCAKE)
    packed.write_bytes(gzip.compress(MOONCAKE.encode()))
    expected = PromptTrace([Prompt(1.5, 700, [1, 2], 9)])
    assert read([plain]) == read([packed]) == expected
    plain.write_text('{"hash_ids": [1, 2]}\n')
    assert read([plain]) == PromptTrace([Prompt(0.0, 1024, [1, 2])])


def test_rotated_siblings_are_read_too_and_all_is_put_in_order_of_time(tmp_path: Path) -> None:
    write(tmp_path / "j.2", [missed(1.0, "a")])
    write(tmp_path / "j.1", [stored(2.0, "a")])
    path = write(tmp_path / "j", [missed(4.0, "c", order=2), missed(4.0, "b", order=1)])
    write(tmp_path / "j.4", [missed(0.0, "not in the row")])
    other = write(tmp_path / "worker", [missed(3.0, "d")])
    assert [file.name for file in with_siblings(path)] == ["j.2", "j.1", "j"]
    found = read([path, other])
    assert isinstance(found, JournalTrace)
    assert [(one.at, getattr(one, "key", None)) for one in found.events] == [
        (1.0, hashed("a")), (2.0, hashed("a")), (3.0, hashed("d")), (4.0, hashed("b")),
        (4.0, hashed("c")),
    ]  # fmt: skip


def test_a_file_that_is_named_twice_or_found_beside_another_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "j.1", [missed(1.0, "a")])
    path = write(tmp_path / "j", [missed(2.0, "b")])
    alone = read([path])
    assert isinstance(alone, JournalTrace)
    assert len(alone.events) == 2
    assert read([path, tmp_path / "j.1", tmp_path / "." / "j"]) == alone
    assert read([tmp_path / "j.1", path]) == alone


def test_the_latest_configuration_is_taken_and_a_change_is_known(tmp_path: Path) -> None:
    first = begun(configured(freshness={"jitter": 0.5}))
    latest = begun()
    latest.at = 9.0
    write(tmp_path / "j.1", [missed(1.0, "a")], first)
    found = read([write(tmp_path / "j", [missed(2.0, "a")], latest)])
    assert isinstance(found, JournalTrace)
    assert found.begin == latest
    assert found.several_configs


def test_fields_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "j", [missed(1.0, "a")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["something new"] = 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert isinstance(read([path]), JournalTrace)


def line(**more: Any) -> str:
    return json.dumps({"kind": "call", "at": 1.0, **more})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("{}", "neither a line of kvgate's journal nor a request with hash_ids"),
        ('{"kind": "begin", "at": 1, "config": {}, "journal": 2}', "a journal of version 2"),
        ('{"kind": "call"}', "'at' is missing"),
        ('{"kind": "stored", "at": 1}', "'key' is missing"),
        (line(at="noon"), "at must be a number"),
        (line(prompt_tokens=True), "prompt_tokens must be a number"),
        (line(key="short"), "key must be 16 hexadecimal characters"),
        (line(key="zz" * 8), "key must be 16 hexadecimal characters"),
        (line(blocks=["x"]), "a list of hashes holds something else"),
        (line(blocks=None), "a list of hashes holds something else"),
        (line(level="best"), "level is none of"),
        (line(tier="boiling"), "tier is none of cold, hot, warm"),
        (line(priority="urgent"), "priority is none of"),
        ('{"hash_ids": 5}', "hash_ids must be a list of whole numbers"),
        ('{"hash_ids": ["a"]}', "hash_ids must be a list of whole numbers"),
        ('{"hash_ids": [], "timestamp": "now"}', "timestamp must be a number"),
    ],
)
def test_a_bad_line_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(MOONCAKE + text + "\n")
    with pytest.raises(TraceError) as raised:
        read([path])
    assert str(raised.value).startswith(f"{path}:2: ")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_half_a_line_is_passed_over_at_the_end_and_before_a_new_beginning(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", [missed(1.0, "a")])
    expected, text = read([whole]), whole.read_bytes()
    path = tmp_path / "j"
    half = text[:-30].rsplit(b"\n", 1)[1]
    path.write_bytes(text + half)
    assert read([path]) == expected
    path.write_bytes(half + b"\n" + text)
    assert read([path]) == expected


@pytest.mark.parametrize(
    ("more", "number"), [(b"{\n", 3), (b"{\n{\n", 3), (b"{\n" + MOONCAKE.encode(), 3)]
)
def test_half_a_line_anywhere_else_is_an_error(more: bytes, number: int, tmp_path: Path) -> None:
    path = write(tmp_path / "j", [missed(1.0, "a")])
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(TraceError, match=f":{number}: not JSON"):
        read([path])


def test_a_file_of_half_a_line_alone_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"{")
    with pytest.raises(TraceError, match=":1: not JSON"):
        read([path])


def test_what_cannot_be_replayed_is_said_in_one_line(tmp_path: Path) -> None:
    journal = write(tmp_path / "j", [missed(1.0, "a")])
    prompts = tmp_path / "p"
    prompts.write_text(MOONCAKE)
    empty = write(tmp_path / "e", [StoredLine(at=1.0, key=hashed("a"))])
    damaged = tmp_path / "d.gz"
    damaged.write_bytes(gzip.compress(MOONCAKE.encode() * 100)[:40])
    for files, said in (
        ([journal, prompts], "together"),
        ([empty], "no call"),
        ([tmp_path / "nowhere"], "No such file"),
        ([tmp_path], "directory"),
        ([damaged], "end"),
    ):
        with pytest.raises(TraceError, match=said) as raised:
            read(files)
        assert "\n" not in str(raised.value)
