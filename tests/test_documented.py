"""The shipped config.yaml is the documentation: complete, true, and one line of why each."""

from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from engine.config import EngineConfig, parse_config
from gateway.backends.embedded import PASSED_ON, child_environment
from gateway.config import Config, load
from gateway.config_file import Where, dotted, read_document
from gateway.config_sections import Backend, Pattern, Tenant

SHIPPED = Path(__file__).parent.parent / "config.yaml"


def options(kind: type[BaseModel], above: Where = ()) -> Iterator[Where]:
    """Every option that is not a section itself."""
    for name, field in kind.model_fields.items():
        inner = [field.annotation, *get_args(field.annotation)]
        sections = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if sections == [field.annotation]:
            yield from options(sections[0], (*above, name))
        else:
            yield (*above, name)


def said(text: list[str], line: int) -> bool:
    """Whether line number ``line`` or the one above it has a comment of some substance."""
    here, above = text[line - 1], text[line - 2]
    return "# " in here or above.lstrip().startswith("# ")


def test_the_shipped_file_says_what_no_file_means() -> None:
    assert load(SHIPPED, environ={}) == Config()
    assert load(SHIPPED, environ={}).warnings == ()


@pytest.mark.parametrize("where", list(options(Config)), ids=dotted)
def test_every_option_is_shown_with_a_word_of_why(where: Where) -> None:
    lines = read_document(SHIPPED).lines
    assert where in lines, f"{dotted(where)} is not in config.yaml"
    assert said(SHIPPED.read_text().splitlines(), lines[where]), f"{dotted(where)}: why?"


def test_every_entry_of_the_tables_says_why() -> None:
    document = read_document(SHIPPED)
    text = SHIPPED.read_text().splitlines()
    leaves = [
        where for where in document.lines if not isinstance(value_at(document.data, where), dict)
    ]
    assert [dotted(where) for where in leaves if not said(text, document.lines[where])] == []


def value_at(data: Any, where: Where) -> Any:
    for step in where:
        data = data[step]
    return data


@pytest.mark.parametrize("kind", [Tenant, Backend, Pattern])
def test_the_lists_that_ship_empty_show_each_of_their_options(
    kind: type[BaseModel], tmp_path: Path
) -> None:
    section = {Tenant: "tenants", Backend: "backends", Pattern: "patterns"}[kind]
    text = SHIPPED.read_text().splitlines()
    start = 1 + next(
        number for number, line in enumerate(text) if line.lstrip().startswith(f"{section}: []")
    )
    example = []
    for line in text[start:]:
        if not line.startswith("#"):
            break
        example.append(line[2:])
    for name in kind.model_fields:
        (line,) = [line for line in example if line.lstrip(" -").startswith(f"{name}:")]
        assert "  # " in line, f"{section}.{name}: why?"
    file = tmp_path / "example.yaml"
    shown = "\n".join(example).replace("sha256:…", "sha256:" + "a" * 64)
    file.write_text(f"{section}:\n{shown}" if kind is not Pattern else nested(section, shown))
    config = load(file, environ={})
    (entry,) = config.warm.patterns if kind is Pattern else getattr(config, section)
    assert entry


def nested(section: str, shown: str) -> str:
    return f"warm:\n  {section}:\n" + "\n".join("  " + line for line in shown.splitlines())


@pytest.mark.parametrize("kind", [Tenant, Backend, Pattern])
def test_the_examples_show_the_defaults(kind: type[BaseModel]) -> None:
    text = SHIPPED.read_text()
    for name, field in kind.model_fields.items():
        if field.is_required() or name in {"base_messages", "variations", "api_keys"}:
            continue  # an example without questions, or without a key, would show nothing
        if field.default_factory is not None:
            assert f"#   {name}: {{}} " in text
            continue
        default = {None: "null", True: "true", False: "false", (): "[]"}.get(
            field.default, field.default
        )
        shown = f"{default:g}" if isinstance(default, float) else default
        assert f"#   {name}: {shown} " in text


def test_the_engine_alone_has_the_same_defaults() -> None:
    alone = {option.name: option for option in fields(EngineConfig)}
    for name in PASSED_ON:
        here = attrgetter(name)(Config().engine)
        assert alone[name.replace(".", "_")].default == (
            0 if here == "auto" and name == "threads" else here
        ), name


def test_what_the_gateway_hands_on_the_engine_understands() -> None:
    handed_on = child_environment(Config().engine, {}, Config().server)
    assert parse_config([], handed_on) == EngineConfig()
