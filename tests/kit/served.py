"""A whole kvgate as users run it: the real command line, a real socket, the real engine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0


class Served:
    """A running ``kvgate serve``. ``lines`` are its JSON log lines so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._listening = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.text.append(line)
            try:
                said = json.loads(line)
            except ValueError:
                continue
            self.lines.append(said)
            if said.get("event") == "listening":
                self.url = said["url"]
                self._listening.set()
        self._listening.set()

    def wait_until_ready(self) -> None:
        """Until ``/readyz`` waits for nothing but the backends; fails with the log when the process ends first."""
        self._listening.wait(START_TIMEOUT_S)
        assert self.url, self.log()
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()
            try:
                status, said = self.get("/readyz")
                # Tests that ask no backend have one that is not there.
                if status == 200 or said.get("waiting_for", {}).keys() == {"backends"}:
                    return
            except urllib.error.URLError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready in time:\n{self.log()}")

    def wait_until_it_says(self, event: str, *, times: int = 1) -> None:
        """Until its log has so many lines of this event; fails with the log if the process ends."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while [line.get("event") for line in self.lines].count(event) < times:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def children(self) -> list[int]:
        """Process ids of its living children."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        found = [(task / "children").read_text().split() for task in tasks.iterdir()]
        return [int(pid) for pids in found for pid in pids]

    def log(self) -> str:
        """All it wrote."""
        return "".join(self.text)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


@contextmanager
def serving(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    ready: bool = True,
    before: Sequence[str] = (),
) -> Iterator[Served]:
    """Run ``python -m gateway serve`` on a free port until the block ends; ``before`` starts it."""
    process = subprocess.Popen(
        [
            *before,
            sys.executable,
            "-m",
            "gateway",
            "serve",
            "--port",
            "0",
            "--log-format",
            "json",
            *arguments,
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environ or {})},
    )
    served = Served(process)
    try:
        if ready:
            served.wait_until_ready()
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stderr is not None:
            served._reader.join(timeout=5)
            process.stderr.close()
