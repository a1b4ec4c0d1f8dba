"""The package as a whole: what importing it costs and pulls in."""

import subprocess
import sys
from pathlib import Path

import policies

MODULES = sorted(path.stem for path in Path(str(policies.__file__)).parent.glob("[!_]*.py"))


def test_policies_import_nothing_but_the_standard_library() -> None:
    code = f"""
import importlib, sys
before = set(sys.modules)
for name in {MODULES!r}:
    importlib.import_module("policies." + name)
found = {{name.partition(".")[0] for name in set(sys.modules) - before}}
foreign = found - set(sys.stdlib_module_names) - {{"policies"}}
assert not foreign, foreign
assert not found & {{"asyncio", "logging", "random", "socket"}}, found
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_the_page_before_the_code_names_every_module() -> None:
    page = str(policies.__doc__)
    assert [name for name in MODULES if f"``{name}``" not in page] == []
