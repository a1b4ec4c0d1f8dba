"""One YAML file as plain data, with the line of every key; and what can be wrong with it.

PyYAML keeps the last of two equal keys without a word, reads ``no:`` as a boolean key and loses
the line numbers once the data is built. So the node tree is walked once before that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Where = tuple[str | int, ...]  # ("tenants", 0, "api_keys", 1)

MOST_VALUES = 100_000  # once every alias is replaced by what it stands for
DEEPEST_ALIAS = 64  # levels that are counted; a circle of anchors has no end
DEEPEST = 12  # levels that get line numbers; also the end of a file whose anchors form a circle


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration, and where to change it."""

    path: str  # "tiers.hot.ttl"; empty for the file as a whole
    message: str
    line: int | None = None  # of the file, from 1; None when the value is not from the file
    variable: str | None = None  # the environment variable or flag that holds the value

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` has every reason at once.

    ``str()`` gives one line each, ``config.yaml:12: tiers.hot.ttl: ...``, so that an editor can
    jump to it. No message repeats a value: values may be secrets.
    """

    def __init__(self, problems: Sequence[Problem], *, file: Path | None = None) -> None:
        self.problems = tuple(
            sorted(problems, key=lambda p: (p.line is None, p.line or 0, p.variable or "", p.path))
        )
        self.file = file
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One readable line per problem."""
        return [located(problem, self.file) for problem in self.problems]


def located(problem: Problem, file: Path | None) -> str:
    """A problem with the place to look at in front."""
    if problem.variable is not None:
        return f"{problem.variable}: {problem}"
    if file is None:
        return str(problem)
    return f"{file}:{problem.line}: {problem}" if problem.line else f"{file}: {problem}"


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a file and the line of each of its keys and list items."""

    data: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Where, int] = field(default_factory=dict)


def dotted(where: Where) -> str:
    """``("tenants", 0, "name")`` as ``tenants.0.name``."""
    return ".".join(str(step) for step in where)


def read_document(file: Path) -> Document:
    """Read ``file``; an empty one is an empty document.

    Raises:
        ConfigError: it cannot be read, is not YAML, is no mapping, or says a key twice.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError([Problem("", f"cannot be read: {reason}")], file=file) from error
    try:
        return _parse(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not valid YAML: {error.problem or error.context}"
        line = mark.line + 1 if mark else None
        raise ConfigError([Problem("", message, line=line)], file=file) from error
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        # ReaderError for bytes that are no text; ValueError for a date like 2024-99-99
        raise ConfigError([Problem("", "not valid YAML: unreadable text")], file=file) from error
    except RecursionError as error:
        raise ConfigError([Problem("", "nested too deeply")], file=file) from error


def read_yaml(text: bytes) -> Any:
    """The one document in ``text`` as plain data. Raises: YAMLError, ValueError, RecursionError."""
    loader = yaml.SafeLoader(text)
    try:
        root = _bounded(loader.get_single_node())
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _bounded(root: yaml.Node | None) -> yaml.Node | None:
    """``root``, unless its aliases make it huge: nine lines of nine aliases are 9^9 values."""
    known: dict[tuple[int, int], int] = {}

    def values(node: yaml.Node, left: int) -> int:
        if left == 0 or not isinstance(node, yaml.CollectionNode):
            return 1
        if (key := (id(node), left)) not in known:
            inner = node.value
            if isinstance(node, yaml.MappingNode):
                inner = [one for pair in inner for one in pair]
            known[key] = 1 + sum(values(one, left - 1) for one in inner)
        return known[key]

    if root is not None and values(root, DEEPEST_ALIAS) > MOST_VALUES:
        problem = f"its aliases stand for more than {MOST_VALUES} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=root.start_mark)
    return root


def _parse(text: bytes, file: Path) -> Document:
    loader = yaml.SafeLoader(text)
    try:
        root = _bounded(loader.get_single_node())
        if root is None:
            return Document()
        if not isinstance(root, yaml.MappingNode):
            message = "must be a mapping of sections such as `server:`"
            line = root.start_mark.line + 1
            raise ConfigError([Problem("", message, line=line)], file=file)
        problems: list[Problem] = []
        _refuse_doubtful_keys(root, (), problems)
        if problems:
            raise ConfigError(problems, file=file)
        data = loader.construct_document(root)
    finally:
        loader.dispose()
    lines: dict[Where, int] = {}
    _collect_lines(root, (), lines)
    return Document(data, lines)


def _refuse_doubtful_keys(node: yaml.Node, where: Where, problems: list[Problem]) -> None:
    """Before the data is built: afterwards a double key has silently become one."""
    if len(where) > DEEPEST:
        return
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_doubtful_keys(item, (*where, index), problems)
    elif isinstance(node, yaml.MappingNode):
        first_line: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                shown = key.value if isinstance(key, yaml.ScalarNode) else "this key"
                problems.append(
                    Problem(dotted(where), f"{shown} is not text; put it in quotes", line=line)
                )
                continue
            here = (*where, key.value)
            if key.value in first_line:
                message = f"said twice, first in line {first_line[key.value]}"
                problems.append(Problem(dotted(here), message, line=line))
            first_line.setdefault(key.value, line)
            _refuse_doubtful_keys(value, here, problems)


def _collect_lines(node: yaml.Node, where: Where, lines: dict[Where, int]) -> None:
    if len(where) > DEEPEST:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*where, key.value)
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*where, index)] = item.start_mark.line + 1
            _collect_lines(item, (*where, index), lines)
