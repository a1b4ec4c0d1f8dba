"""The tests of OpenAI's own Python SDK, through the gateway: does a client notice that we are there?

``python -m tests.conformance.openai_sdk SPEC [--keep FOLDER] [--openai VERSION]``

``SPEC`` is OpenAI's OpenAPI document, which is in no package; take it from the SDK's repository. The
rest comes from package indexes into a temporary folder: the SDK's source distribution with its
tests, what they import, and ``steady``, the mock server of the SDK's own checks, which answers by
the specification and refuses requests that break it. The tests run against ``steady``, then against
a kvgate with ``steady`` behind it, then against one that also stores answers without being asked, so
that later tests are answered from the store. Exit status 1 when fewer pass through kvgate.

Not collected by pytest: it needs Node and a package index.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from tests.kit.served import serving

STEADY: Final = "0.22.2"
TESTS: Final = (
    "tests/api_resources/chat",
    "tests/api_resources/responses",
    "tests/api_resources/test_completions.py",
    "tests/api_resources/test_embeddings.py",
    "tests/api_resources/test_models.py",
    "tests/api_resources/test_responses.py",
)
NEEDS: Final = ("pytest>=9,<10", "pytest-asyncio>=1.4,<2", "rich")
START_S: Final = 60.0
OUTCOMES: Final = ("passed", "failed", "skipped")


@dataclass(frozen=True, slots=True)
class Run:
    """Test names with their outcomes, how long it took, and what pytest said."""

    outcomes: Mapping[str, str]
    seconds: float
    output: str

    def count(self, outcome: str) -> int:
        """How many tests ended so."""
        return sum(1 for ended in self.outcomes.values() if ended == outcome)

    def named(self, outcome: str) -> set[str]:
        """Which tests ended so."""
        return {name for name, ended in self.outcomes.items() if ended == outcome}


@dataclass(frozen=True, slots=True)
class Tools:
    """What was installed: the SDK's source tree, the Python that has it, the mock server."""

    sdk: Path
    python: Path
    steady: Path


def install(folder: Path, version: str) -> Tools:
    """Install into ``folder`` what is not there yet. Raises: CalledProcessError."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
    step([*pip, "install", f"openai[aiohttp]=={version}", *NEEDS])
    sdk = folder / f"openai-{version}"
    if not sdk.exists():
        source = ["--no-deps", "--no-binary", "openai", "-d", str(folder)]
        step([*pip, "download", *source, f"openai=={version}"])
        with tarfile.open(folder / f"openai-{version}.tar.gz") as packed:
            packed.extractall(folder, filter="data")
    steady = folder / "node_modules" / ".bin" / "steady"
    if not steady.exists():
        npm = shutil.which("npm") or "npm"
        wanted = [f"@stdy/cli@{STEADY}", f"@stdy/cli-linux-x64@{STEADY}"]
        step([npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *wanted])
    return Tools(sdk, python, steady)


def step(command: list[str]) -> None:
    """A step of the installation; its output only when it fails. Raises: SystemExit."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


@contextmanager
def mocking(steady: Path, spec: Path, log: Path) -> Iterator[str]:
    """A running mock server; gives its URL. Raises: SystemExit when it does not come up."""
    port = free_port()
    brackets = [
        f"--validator-{part}-{kind}-format=brackets"
        for part in ("query", "form")
        for kind in ("array", "object")
    ]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(steady), "--host", "127.0.0.1", "-p", str(port), *brackets, str(spec)],
            stdout=sink,
            stderr=sink,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_S
        while not healthy(f"{url}/_x-steady/health"):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"steady did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(url: str) -> bool:
    """Whether a GET is answered 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def sdk_tests(tools: Tools, base_url: str, report: Path) -> Run:
    """Run the SDK's tests against ``base_url``. Raises: SystemExit when none were run."""
    began = time.monotonic()
    done = subprocess.run(
        [
            str(tools.python), "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q",
            "--tb=short", f"--junitxml={report}", *TESTS,
        ],
        cwd=tools.sdk,
        env={**os.environ, "TEST_API_BASE_URL": base_url, "DEFER_PYDANTIC_BUILD": "false"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    outcomes = read(report) if report.exists() else {}
    if not outcomes:
        raise SystemExit(f"no test ran against {base_url}:\n{output}")
    return Run(outcomes, time.monotonic() - began, output)


def read(report: Path) -> dict[str, str]:
    """The outcomes in a JUnit file."""
    outcomes = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        broken = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        outcomes[name] = "failed" if broken else "skipped" if skipped else "passed"
    return outcomes


def compare(runs: Mapping[str, Run]) -> int:
    """Print all side by side, the first being the measure of the others; the exit status."""
    print("".join(f"{name:>10}" for name in ("", *runs)))
    for outcome in OUTCOMES:
        print(f"{outcome:>10}" + "".join(f"{run.count(outcome):>10}" for run in runs.values()))
    print(f"{'seconds':>10}" + "".join(f"{run.seconds:>10.1f}" for run in runs.values()))
    direct, *others = runs.values()
    for name, through in list(runs.items())[1:]:
        lost = sorted(direct.named("passed") - through.named("passed"))
        for test in lost:
            print(f"passes directly, not through {name}: {test}")
        if lost:
            print(through.output)
    return int(any(through.count("passed") < direct.count("passed") for through in others))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="OpenAI's OpenAPI document")
    parser.add_argument("--keep", type=Path, help="install into this folder and leave it there")
    parser.add_argument("--openai", default="3.54.0", help="version of the SDK")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (asked.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        tools = install(folder, asked.openai)
        with mocking(tools.steady, asked.spec.resolve(), Path(scratch) / "steady.log") as mock:
            runs = {"direct": sdk_tests(tools, mock, Path(scratch) / "direct.xml")}
            for name, stored in (("kvgate", "false"), ("storing", "true")):
                config = Path(scratch) / f"{name}.yaml"
                config.write_text(
                    f'backends: [{{name: steady, base_url: "{mock}", models: ["*"]}}]\n'
                    'tenants: [{name: sdk, api_keys: ["My API Key"], admin: true}]\n'
                    f"engine: {{enabled: false}}\ndefaults: {{enabled: {stored}}}\n"
                )
                with serving("--config", str(config)) as kvgate:
                    report = Path(scratch) / f"{name}.xml"
                    runs[name] = sdk_tests(tools, f"{kvgate.url}/v1", report)
    return compare(runs)


if __name__ == "__main__":
    sys.exit(main())
