"""The reading of YAML: lines, double keys, and every way a file can be no configuration."""

from pathlib import Path

import pytest

from gateway.config_file import ConfigError, Problem, read_document


def reading_fails(tmp_path: Path, text: str | bytes) -> tuple[Problem, ...]:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        read_document(file)
    assert caught.value.file == file
    return caught.value.problems


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: 1\nb:\n  c: {d: 2}\n  e:\n  - f\n  - {g: 3}\n")
    document = read_document(file)
    assert document.data == {"a": 1, "b": {"c": {"d": 2}, "e": ["f", {"g": 3}]}}
    assert document.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", "d"): 3,
        ("b", "e"): 4,
        ("b", "e", 0): 5,
        ("b", "e", 1): 6,
        ("b", "e", 1, "g"): 6,
    }


def test_a_double_key_is_an_error_that_names_both_lines(tmp_path: Path) -> None:
    (found,) = reading_fails(tmp_path, "a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert (found.path, found.line, found.message) == ("a.b", 4, "said twice, first in line 2")


def test_a_key_that_yaml_takes_for_something_else_is_an_error(tmp_path: Path) -> None:
    found = reading_fails(tmp_path, "a: {no: 1, 7: 2}\n? [x]\n: y\n")
    assert [p.message for p in found] == [
        "no is not text; put it in quotes",
        "7 is not text; put it in quotes",
        "this key is not text; put it in quotes",
    ]


@pytest.mark.parametrize("text", ["- a\n", "word\n", "7\n"])
def test_a_root_that_is_no_mapping_is_an_error(text: str, tmp_path: Path) -> None:
    (found,) = reading_fails(tmp_path, text)
    assert found.line == 1
    assert "mapping" in found.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2\n", 2),
        ("a: 1\n\tb: 2\n", 2),
        ("a: *nowhere\n", 1),
        ("a: !!python/object:os.system {}\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
    ],
)
def test_broken_yaml_is_an_error_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    (found,) = reading_fails(tmp_path, text)
    assert found.line == line
    assert found.message.startswith("not valid YAML: ")


@pytest.mark.parametrize("text", [b"a: \xff\xfe\xfa\n", b"a: \x00\n", b"a: 2024-99-99\n"])
def test_bytes_that_are_no_text_are_an_error(text: bytes, tmp_path: Path) -> None:
    (found,) = reading_fails(tmp_path, text)
    assert found.message == "not valid YAML: unreadable text"


def test_a_nesting_without_end_is_an_error(tmp_path: Path) -> None:
    (found,) = reading_fails(tmp_path, "a: " + "[" * 5000)
    assert found.message == "nested too deeply"


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LAUGHS, id="lists in lists"),
        pytest.param(MERGED, id="merged mappings"),
        pytest.param("a: &a [" + ", ".join(["*a"] * 9) + "]\n", id="a circle"),
        pytest.param("a: &a {" + ", ".join(f"k{n}: *a" for n in range(9)) + "}\n", id="a ring"),
        pytest.param("a: &a [" + "x, " * 400 + "]\nb: [" + "*a, " * 400 + "]\n", id="one level"),
    ],
)
def test_aliases_that_stand_for_too_much_are_an_error(text: str, tmp_path: Path) -> None:
    (found,) = reading_fails(tmp_path, text)
    assert found.message == "not valid YAML: its aliases stand for more than 100000 values"


def test_aliases_that_stand_for_little_are_what_they_stand_for(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &a [x, y]\nb: &b [*a, *a]\nc: {d: *b, e: *b}\n")
    twice = [["x", "y"], ["x", "y"]]
    assert read_document(file).data["c"] == {"d": twice, "e": twice}


def test_anchors_that_form_a_circle_do_not_hang(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &a [*a]\n")
    assert ("a", 0) in read_document(file).lines


def test_merged_mappings_keep_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &a\n  x: 1\nb:\n  <<: *a\n  y: 2\n")
    document = read_document(file)
    assert document.data["b"] == {"x": 1, "y": 2}
    assert document.lines["b", "x"] == 2


def test_a_missing_file_and_a_folder_are_errors_that_name_it(tmp_path: Path) -> None:
    for file, reason in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ConfigError) as caught:
            read_document(file)
        assert str(file) in str(caught.value)
        assert reason in str(caught.value)
