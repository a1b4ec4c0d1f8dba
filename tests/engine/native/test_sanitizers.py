"""The C code watched while it runs: no byte out of bounds, nothing undefined, no race between threads.

What a sanitizer needs of the machine (its library, a layout of memory that it knows) may be missing: then
it is skipped and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.native import build
from engine.native.library import Library

HISTORY = """
import random, sys
from pathlib import Path
from engine.native.library import Library
from tests.kit.native import native_stage, read_weights
from tests.kit.stage import sequence
from tests.kit.tiny_model import TinyLlama

library = Library(Path(sys.argv[1]))
assert library.agrees()
tiny = TinyLlama(hidden=96, heads=3, kv_heads=1, vocab=301, layers=1, tied=False)
weights = read_weights(library, tiny.write(Path(sys.argv[2])))
for block_tokens in (16, 128):
    count = -(-600 // block_tokens)
    stage = native_stage(library, weights, threads=3, blocks=count, block_tokens=block_tokens)
    one = sequence([i % 260 for i in range(600)], random.Random(1).sample(range(count), count))
    rows = stage.in_steps(one, [513, 514, 523, 530, 599])
    for active in (2, 1, 3, 2):  # a crowd that comes and goes
        stage.runner.crowd.active = active
        assert stage.in_steps(one, [start for start in range(560, 600)], 559).equal(rows[559:])
    stage.runner.close()
print("clean")
"""
UNKNOWN_MEMORY = "unexpected memory mapping"


SANITIZERS = {"address,undefined": "libasan.so", "thread": "libtsan.so"}


def watched(folder: Path, kinds: str) -> subprocess.Popen[str] | None:
    """A process that runs a history of steps on a build with these sanitizers; None without them."""
    compiler = build.find_compiler({})
    found = subprocess.run(
        [compiler, f"-print-file-name={SANITIZERS[kinds]}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not Path(found).is_absolute():
        return None
    path = folder / "kvgate.so"
    flags = (*build.FLAGS, "-O1", "-g", f"-fsanitize={kinds}", "-fno-sanitize-recover=all")
    build.compile_to(path, compiler, flags=flags)
    environment = {
        **os.environ,
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own are many
        "TSAN_OPTIONS": "exitcode=66",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", HISTORY, str(path), str(folder / "tiny")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def processes(
    native: Library, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, subprocess.Popen[str] | None]:
    """All at once: each takes seconds to start."""
    return {kinds: watched(tmp_path_factory.mktemp("watched"), kinds) for kinds in SANITIZERS}


@pytest.mark.parametrize("kinds", list(SANITIZERS))
def test_a_history_of_steps_is_clean(
    processes: dict[str, subprocess.Popen[str] | None], kinds: str
) -> None:
    process = processes[kinds]
    if process is None:
        pytest.skip(f"the compiler has no {SANITIZERS[kinds]}")
    said, _ = process.communicate(timeout=240)
    if UNKNOWN_MEMORY in said:
        pytest.skip(f"{SANITIZERS[kinds]} does not know this machine's layout of memory")
    assert process.returncode == 0, said
    assert said.strip().endswith("clean")
    assert "WARNING" not in said, said
