"""Compiles `src/` with the compiler that is there, once for a machine; the result is kept by its content.

    <cache>/native/<hash of sources, compiler, flags and CPU>.so     appears by a rename
    |-- what the compiler made --|-- its SHA-256 --|                 a damaged file is made anew

A library is used only when it computes what plain numpy computes (`Library.agrees`): a compiler's or a
CPU's fault costs speed, never answers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from engine.native.library import Library
from engine.weights.fetch import cache_folder

FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=off", "-std=gnu11", "-D_GNU_SOURCE"),
    *("-fPIC", "-shared", "-pthread"),
)
"""`-ffp-contract=off`: a product and a sum become one operation only where the source says so."""
_SOURCES = Path(__file__).parent / "src"
_NEEDED = frozenset({"avx2", "fma", "f16c"})
_COMPILE_S = 120.0
_DIGEST_BYTES = hashlib.sha256().digest_size


class NoNativeError(Exception):
    """The native kernels cannot be had here; the message says why, in one line."""


def library(environment: Mapping[str, str] = os.environ) -> Library:
    """The compiled and checked library. Raises `NoNativeError`."""
    features = cpu_features()
    compiler = find_compiler(environment)
    path = _target(cache_folder(environment) / "native", compiler, features)
    if not is_whole(path):
        compile_to(path, compiler)
    try:
        found = Library(path)
    except OSError as error:
        raise NoNativeError(f"{path}: {error}") from error
    if not found.agrees():
        raise NoNativeError(f"{path}: computes other numbers than it should, and is not used")
    return found


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What this CPU can do, by Linux's names. Raises `NoNativeError` when that is too little."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NoNativeError(f"not written for {platform.system()} on {platform.machine()}")
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip() == "flags":
                found = frozenset(words.split())
                if missing := sorted(_NEEDED - found):
                    raise NoNativeError(f"this CPU lacks {', '.join(missing)}")
                return found
    raise NoNativeError(f"{cpuinfo} does not say what this CPU can do")


def find_compiler(environment: Mapping[str, str]) -> str:
    """`$CC`, else the first of cc, gcc and clang. Raises `NoNativeError`."""
    path = environment.get("PATH")
    for name in filter(None, (environment.get("CC"), "cc", "gcc", "clang")):
        if found := shutil.which(name, path=path):
            return found
    raise NoNativeError("there is no C compiler (CC, cc, gcc, clang)")


def compile_to(path: Path, compiler: str, *, flags: tuple[str, ...] = FLAGS) -> None:
    """Compile the sources; `path` appears whole or not at all. Raises `NoNativeError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, "kvgate.so")
            command = [compiler, *flags, str(_SOURCES / "forward.c"), "-o", str(made), "-lm"]
            done = subprocess.run(  # noqa: S603 - the compiler is the user's own
                command, capture_output=True, text=True, timeout=_COMPILE_S, check=False
            )
            if done.returncode:
                raise NoNativeError(f"{compiler} failed: {_complaint(done.stderr)}")
            data = made.read_bytes()
            made.write_bytes(data + hashlib.sha256(data).digest())
            made.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoNativeError(f"{path} cannot be made: {error}") from error


def is_whole(path: Path) -> bool:
    """Is there a library, as it was written? Opening one that was cut short could end the process."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:]


def _complaint(text: str) -> str:
    """The first line that says what is wrong: the lines before it say where."""
    lines = text.strip().splitlines() or ["nothing said"]
    return next((line for line in lines if "error" in line), lines[0])


def code_version() -> str:
    """A hash of the sources: bits may change when they do."""
    digest = hashlib.sha256()
    for file in sorted(_SOURCES.iterdir()):
        if file.suffix in {".c", ".h"}:
            digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _target(folder: Path, compiler: str, features: frozenset[str]) -> Path:
    stat = Path(compiler).resolve().stat()
    words = (code_version(), compiler, str(stat.st_size), str(stat.st_mtime_ns), *FLAGS)
    digest = hashlib.sha256("\0".join((*words, *sorted(features))).encode()).hexdigest()
    return folder / f"{digest[:32]}.so"
