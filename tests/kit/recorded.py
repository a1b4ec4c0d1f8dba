"""What OpenAI's servers really answered: the recordings in a package's source distribution.

``opentelemetry-instrumentation-openai-v2`` (Apache-2.0) brings recorded exchanges with
api.openai.com for its own tests. They are fetched from the package index on first use and kept in
the user's cache folder; nothing of them lies in this repository.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from tests.kit.scripted_upstream import Reply

PACKAGE: Final = "opentelemetry-instrumentation-openai-v2"
VERSION: Final = "2.4b0"
FILE: Final = f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
SHA256: Final = "571a2febd05b15808d7c777455d5a74c9abe08c694cb9827a98c5b4258f2adf1"
TOLD: Final = ("x-ratelimit-", "openai-", "x-request-id")


@dataclass(frozen=True)
class Exchange:
    """A request to OpenAI and its answer, as they were on the wire."""

    name: str
    path: str
    request: dict[str, Any]
    status: int
    content_type: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def stream(self) -> bool:
        """Whether the answer came as events."""
        return self.content_type.startswith("text/event-stream")

    def reply(self) -> Reply:
        """The same from a scripted upstream."""
        return Reply((self.raw,), self.status, self.headers, self.content_type)


def fetched(folder: Path) -> Path:
    """The source distribution. Raises: CalledProcessError when the index cannot be reached."""
    there = folder / FILE
    if not there.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            wish = ["--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}"]
            command = [sys.executable, "-m", "pip", "download", "-q", "-d", fresh, *wish]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            (Path(fresh) / FILE).replace(there)
    digest = hashlib.sha256(there.read_bytes()).hexdigest()
    assert digest == SHA256, f"{there} is not the file it was"
    return there


def exchanges(distribution: Path) -> list[Exchange]:
    """Every different exchange that was recorded."""
    found: dict[tuple[bytes, bytes], Exchange] = {}
    with tarfile.open(distribution) as archive:
        for member in sorted(archive.getmembers(), key=lambda one: one.name):
            opened = archive.extractfile(member) if "/cassettes/" in member.name else None
            if opened is None:
                continue
            for one in yaml.safe_load(opened)["interactions"]:
                exchange = _exchange(Path(member.name).stem, one)
                found.setdefault((orjson.dumps(exchange.request), exchange.raw), exchange)
    return list(found.values())


def _exchange(name: str, one: Any) -> Exchange:
    request, response = one["request"], one["response"]
    said = {key.lower(): value for key, value in response["headers"].items()}
    text = response["body"]["string"]
    return Exchange(
        name=name,
        path=request["uri"].removeprefix("https://api.openai.com"),
        request=orjson.loads(request["body"]),
        status=response["status"]["code"],
        content_type=said["content-type"][0],
        headers={key: value[0] for key, value in said.items() if key.startswith(TOLD)},
        raw=text if isinstance(text, bytes) else text.encode(),
    )
