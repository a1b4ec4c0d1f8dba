"""The house rules that a machine can check: who imports whom, how long things are, what is named.

The drawing these rules come from is in CONTRIBUTING.md. Everything here reads source text with
``ast``; only the last tests start Python, to see what an import really pulls in.
"""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("policies", "gateway", "engine")
OURS = (*PACKAGES, "loadtest", "tests")

MOST_LINES = 500
LINES_WITHOUT_A_REASON = 400
REASON_FOR_LINES = re.compile(r"^Over 400 lines because \S+", re.MULTILINE)
MOST_FUNCTION_LINES = 80
REQUEST_PATH = ("gateway/pipeline.py", "gateway/flights.py", "gateway/routes/")
MOST_FUNCTION_LINES_ON_THE_PATH = 60
MOST_PROTOCOL_METHODS = 6

IMPURE = frozenset(
    {"asyncio", "datetime", "logging", "os", "pathlib", "random", "secrets", "signal", "socket",
     "subprocess", "tempfile", "threading", "time", "urllib", "uuid"}
)  # fmt: skip
EMPTY_WORDS = frozenset({"utils", "util", "common", "helpers", "helper", "misc", "shared"})
TORCH_FREE = (
    "engine", "engine.config", "engine.drafts", "engine.errors", "engine.kv.ascent", "engine.kv.blob",
    "engine.kv.blocks", "engine.kv.choice", "engine.kv.costs", "engine.kv.descent", "engine.kv.disk",
    "engine.kv.layout", "engine.kv.opening", "engine.kv.prefix", "engine.kv.shelf", "engine.kv.stock",
    "engine.kv.tiers", "engine.kv.why", "engine.kv_control", "engine.lanes", "engine.latency", "engine.models.config",
    "engine.models.rope", "engine.plan", "engine.request", "engine.scheduler", "engine.sharing",
    "engine.spans", "engine.speculation", "engine.text.detokenizer", "engine.verify", "engine.weights.config_json",
    "engine.weights.fetch", "engine.weights.shapes",
)  # fmt: skip
TESTED_ELSEWHERE = {
    "gateway/__main__.py": "two lines, run by tests/gateway/test_cli.py as a process",
    "engine/call.py": "tests/engine/test_answers.py and tests/engine/test_service.py, call by call",
    "engine/fields.py": "tests/engine/test_api.py, body by body",
    "engine/wire.py": "tests/engine/test_server.py",
    "engine/__main__.py": "run as a process by tests/scenarios and tests/engine/test_server.py",
    "gateway/backends/base.py": "a contract; its implementations are tested against it",
    "gateway/store/base.py": "a contract, tested once for all stores in tests/contracts/test_store.py",
    "gateway/store/memory.py": "tests/contracts/test_store.py",
    "gateway/store/redis_lua.py": "run on a server by tests/gateway/store/test_redis.py",
    "gateway/store/sharing.py": "contracts, tested once for all in tests/contracts/test_sharing.py",
    "gateway/store/sharing_memory.py": "tests/contracts/test_sharing.py",
    "gateway/store/disk_place.py": "tests/gateway/test_places.py",
    "gateway/store/sharing_disk.py": "tests/contracts/test_sharing.py",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One file of ours, read and parsed."""

    path: str  # from the root, with forward slashes
    name: str  # dotted
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def lines(self) -> int:
        return self.text.count("\n")


@cache
def sources(*packages: str) -> tuple[Source, ...]:
    found = []
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            text = file.read_text()
            found.append(Source(path, name, text, ast.parse(text, path)))
    return tuple(found)


def imported(node: ast.AST, importer: Source) -> list[str]:
    """The dotted names that an import statement asks for, relative ones resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = importer.name.split(".")
            is_package = importer.path.endswith("__init__.py")
            above = above[: len(above) - node.level + is_package]
            base = ".".join([*above, *filter(None, [base])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def all_imports(source: Source) -> Iterator[tuple[int, str]]:
    """Everywhere in the file, late and type-only imports included."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node, source):
                yield node.lineno, name


def import_time_imports(source: Source) -> Iterator[str]:
    """What runs when the module is imported: not in functions, not for types only."""
    waiting: list[ast.AST] = list(source.tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        yield from imported(node, source)
        waiting.extend(ast.iter_child_nodes(node))


def forbidden(package: str, allowed: re.Pattern[str]) -> list[str]:
    """Imports of ``package`` that ``allowed`` does not match, as ``file:line: name``."""
    return [
        f"{source.path}:{line}: {name}"
        for source in sources(package)
        for line, name in all_imports(source)
        if not allowed.match(name)
    ]


def not_ours(*but: str) -> re.Pattern[str]:
    """Names outside this project, and of ours those that start like ``but``."""
    ours, allowed = "|".join(OURS), "|".join(re.escape(name) for name in but)
    return re.compile(rf"(?:{allowed})(?:\.|$)|(?!(?:{ours})(?:\.|$))")


def test_policies_import_the_standard_library_and_themselves() -> None:
    allowed = {*(sys.stdlib_module_names - IMPURE), "policies"}
    pattern = re.compile("|".join(rf"{name}(?:\.|$)" for name in sorted(allowed)))
    assert forbidden("policies", pattern) == []


def test_policies_touch_no_file_and_print_nothing() -> None:
    found = [
        f"{source.path}:{node.lineno}: {node.func.id}"
        for source in sources("policies")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"open", "print", "input", "exec", "eval", "__import__"}
    ]
    assert found == []


def test_gateway_imports_policies_and_never_the_engine() -> None:
    assert forbidden("gateway", not_ours("gateway", "policies")) == []
    assert forbidden("gateway", re.compile(r"(?!torch(?:\.|$))")) == []


def test_engine_imports_of_ours_only_the_orders_of_eviction() -> None:
    assert forbidden("engine", not_ours("engine", "policies.eviction", "policies.reuse")) == []


def test_engine_imports_no_web_server_of_the_gateways_kind_by_accident() -> None:
    assert forbidden("engine", re.compile(r"(?!(?:pydantic|typer|structlog)(?:\.|$|_))")) == []


def test_loadtest_is_imported_by_nobody_but_its_own_tests() -> None:
    found = [
        place
        for package in (*PACKAGES, "tests")
        for place in forbidden(package, re.compile(r"(?!loadtest(?:\.|$))"))
        if not place.startswith("tests/loadtest/")
    ]
    assert found == []


def test_no_source_imports_the_tests() -> None:
    for package in PACKAGES:
        assert forbidden(package, re.compile(r"(?!tests(?:\.|$))")) == []


def test_no_room_is_named_after_nothing() -> None:
    found = [
        source.path
        for source in sources(*PACKAGES, "loadtest")
        if EMPTY_WORDS & set(source.name.split("."))
    ]
    assert found == []


def test_no_import_goes_in_a_circle() -> None:
    known = {source.name: source for source in sources(*PACKAGES)}
    graph: dict[str, set[str]] = {}
    for source in known.values():
        asked = set(import_time_imports(source))
        # `from a.b import c` runs a.b, and a.b.c where that is a module
        runs = {name for name in asked if name in known}
        runs |= {name.rpartition(".")[0] for name in asked if name.rpartition(".")[0] in known}
        graph[source.name] = runs - {source.name}
    assert circles(graph) == []


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Each circle once, as ``a -> b -> a``."""
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_a_file_over_400_lines_has_a_reason_and_none_is_over_500() -> None:
    unreasoned = [
        f"{source.path}: {source.lines} lines"
        for source in sources(*PACKAGES, "loadtest")
        if source.lines > LINES_WITHOUT_A_REASON
        and not REASON_FOR_LINES.search(ast.get_docstring(source.tree) or "")
    ]
    too_long = [
        f"{source.path}: {source.lines} lines"
        for source in sources(*PACKAGES, "loadtest", "tests")
        if source.lines > MOST_LINES
    ]
    assert unreasoned + too_long == []
    assert statistics.median(source.lines for source in sources(*PACKAGES)) <= 160


def functions(*packages: str) -> Iterator[tuple[Source, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for source in sources(*packages):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield source, node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code from ``def`` on, without the docstring: explaining should cost nothing."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_functions_are_short_and_shorter_on_the_requests_path() -> None:
    too_long = []
    for source, node in functions(*PACKAGES, "loadtest"):
        on_the_path = source.path.startswith(REQUEST_PATH)
        most = MOST_FUNCTION_LINES_ON_THE_PATH if on_the_path else MOST_FUNCTION_LINES
        if length(node) > most:
            too_long.append(f"{source.path}:{node.lineno}: {node.name} has {length(node)} lines")
    assert too_long == []


def test_most_functions_are_very_short() -> None:
    lengths = sorted(length(node) for _, node in functions(*PACKAGES))
    assert statistics.median(lengths) <= 8
    assert lengths[len(lengths) * 95 // 100] <= 40


def test_a_protocol_is_small() -> None:
    found = []
    for source in sources(*PACKAGES):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).split("[")[0] in {"Protocol", "typing.Protocol"}
                for base in node.bases
            ):
                public = [
                    item.name
                    for item in node.body
                    if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not item.name.startswith("_")
                ]
                if len(public) > MOST_PROTOCOL_METHODS:
                    found.append(f"{source.path}: {node.name} asks for {', '.join(public)}")
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_begins_with_a_page(package: str) -> None:
    folders = {file.parent for file in (ROOT / package).rglob("*.py")}
    pages = {
        folder.relative_to(ROOT).as_posix(): folder / "__init__.py" for folder in sorted(folders)
    }
    missing = [
        name
        for name, page in pages.items()
        if not page.exists() or len(ast.get_docstring(ast.parse(page.read_text())) or "") < 80
    ]
    assert missing == []


def test_every_module_says_what_it_is_for() -> None:
    found = [
        source.path
        for source in sources(*PACKAGES, "loadtest")
        if source.text.strip() and not ast.get_docstring(source.tree)
    ]
    assert found == []


def test_every_module_has_a_test_file_of_its_name() -> None:
    """In the mirrored folder where two modules of a package have one name, anywhere otherwise."""
    modules = [s for s in sources(*PACKAGES) if not s.path.endswith("__init__.py")]
    stems = Counter((source.package, Path(source.path).stem) for source in modules)
    tests = {file.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    untested = []
    for source in modules:
        path = Path(source.path)
        name = f"test_{path.stem}.py"
        mirrored = path.parent / name
        by_name = {test for test in tests if test.name == name and test.parts[0] not in PACKAGES}
        by_name |= {test for test in tests if test.name == name and test.parts[0] == source.package}
        single = stems[source.package, path.stem] == 1
        if (
            mirrored not in tests
            and not (single and by_name)
            and source.path not in TESTED_ELSEWHERE
        ):
            untested.append(source.path)
    assert untested == []


def test_the_exceptions_of_this_file_are_still_needed() -> None:
    for path, reason in TESTED_ELSEWHERE.items():
        assert (ROOT / path).exists(), f"{path} is gone"
        assert len(reason) > 10
        tests = re.findall(r"tests/[\w/]+(?:\.py)?", reason)
        assert all((ROOT / test).exists() for test in tests), reason


def test_a_lint_or_type_exception_carries_its_reason() -> None:
    exception = re.compile(
        r"#\s*(?:noqa(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?|type:\s*ignore(?:\[[\w\-, ]+\])?)(.*)$"
    )
    found = []
    for source in sources(*PACKAGES, "loadtest"):
        for number, line in enumerate(source.text.splitlines(), 1):
            seen = exception.search(line)
            if seen and len(re.findall(r"[a-z]", seen[1])) < 4:
                found.append(f"{source.path}:{number}: {line.strip()}")
    assert found == []


def test_banned_calls_say_what_to_do_instead() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    banned = project["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert {"time.time", "random.random", "asyncio.create_task", "pickle"} <= banned.keys()
    for name, rule in banned.items():
        assert len(rule["msg"]) > 20, name
    assert "TID" in project["tool"]["ruff"]["lint"]["select"]


def fresh_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", TORCH_FREE)
def test_what_is_marked_so_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert fresh_python(code) == "[]"


def test_importing_a_package_starts_nothing_heavy() -> None:
    heavy = "('torch', 'aiohttp', 'pydantic', 'structlog', 'rich', 'asyncio')"
    for package in PACKAGES:
        code = f"import sys, {package}; print([m for m in {heavy} if m in sys.modules])"
        assert fresh_python(code) == "[]", package


def test_the_whole_gateway_imports_without_the_engine() -> None:
    code = "import sys, gateway.serve; print(sorted(m for m in sys.modules if m.split('.')[0] in {'engine', 'torch'}))"
    assert fresh_python(code) == "[]"
