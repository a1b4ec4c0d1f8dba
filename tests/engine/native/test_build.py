"""Compiling at the first start: once, whole, and with a readable reason where it cannot be."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from engine.native import build
from engine.native.build import NoNativeError, compile_to, cpu_features, find_compiler, library
from engine.native.library import Library
from tests.kit.native import changed_sources


def cached(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "KVGATE_CACHE_DIR": str(folder)}


def script(folder: Path, name: str, text: str) -> Path:
    """A program for the PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def once(native: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with a library in it, which nothing can be compiled into."""
    compiler = find_compiler(cached(tmp_path))
    path = build._target(tmp_path / "native", compiler, cpu_features())
    path.parent.mkdir()
    path.write_bytes(native.path.read_bytes())
    monkeypatch.setattr(build, "compile_to", lambda *_: pytest.fail("it was there already"))
    return path


def test_the_second_start_compiles_nothing(once: Path) -> None:
    assert library(cached(once.parent.parent)).path == once


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty"])
def test_a_damaged_library_is_made_anew_and_not_opened(
    once: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = once.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    once.write_bytes({"cut short": whole[:-9000], "one bit": flipped, "empty": b""}[damage])
    made: list[Path] = []

    def compiles(path: Path, _compiler: str) -> None:
        made.append(path)
        path.write_bytes(whole)

    monkeypatch.setattr(build, "compile_to", compiles)
    assert library(cached(once.parent.parent)).path == once
    assert made == [once]
    library(cached(once.parent.parent))
    assert made == [once], "and then it is whole"


def test_another_compiler_other_flags_and_another_cpu_are_other_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (str(script(tmp_path / name, "cc", "exit 0")) for name in ("one", "two"))
    features = frozenset({"avx2", "fma", "f16c"})
    paths = [
        build._target(tmp_path, one, features),
        build._target(tmp_path, two, features),
        build._target(tmp_path, one, features | {"avx512bw"}),
    ]
    monkeypatch.setattr(build, "FLAGS", ("-O2",))
    paths.append(build._target(tmp_path, one, features))
    sources = changed_sources(tmp_path, "crew.h", "#define SPINS 4000", "#define SPINS 4001")
    monkeypatch.setattr(build, "_SOURCES", sources)
    paths.append(build._target(tmp_path, one, features))
    assert len(set(paths)) == 5
    assert paths[-1] == build._target(tmp_path, one, features)


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoNativeError, match=r"no C compiler \(CC, cc, gcc, clang\)"):
        find_compiler({"PATH": str(tmp_path)})


def test_the_compiler_is_cc_of_the_environment_then_the_first_there_is(tmp_path: Path) -> None:
    clang = script(tmp_path, "clang", "exit 0")
    mine = script(tmp_path / "else", "mycc", "exit 0")
    path = {"PATH": str(tmp_path)}
    assert find_compiler(path) == str(clang)
    gcc = script(tmp_path, "gcc", "exit 0")
    assert find_compiler(path) == str(gcc)
    assert find_compiler(path | {"CC": str(mine)}) == str(mine)
    assert find_compiler(path | {"CC": "clang"}) == str(clang)
    assert find_compiler(path | {"CC": "not-there"}) == str(gcc)
    assert find_compiler(path | {"CC": ""}) == str(gcc)


@pytest.mark.parametrize(
    ("says", "quoted"),
    [
        ("echo 'In file included from x:' >&2; echo 'x.c:1: error: no' >&2; exit 1", "x.c:1: error: no"),
        ("echo 'disk is full' >&2; echo more >&2; exit 2", "disk is full"),
        ("exit 3", "nothing said"),
    ],
)  # fmt: skip
def test_what_a_compiler_complains_of_is_quoted_in_one_line(
    tmp_path: Path, says: str, quoted: str
) -> None:
    compiler = script(tmp_path / "bin", "cc", says)
    target = tmp_path / "made" / "one.so"
    with pytest.raises(NoNativeError) as raised:
        compile_to(target, str(compiler))
    assert str(raised.value) == f"{compiler} failed: {quoted}"
    assert list(target.parent.iterdir()) == [], "nothing half made"


def test_a_compiler_that_makes_nothing_or_never_ends_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = script(tmp_path / "lazy", "cc", "exit 0")
    with pytest.raises(NoNativeError, match=r"cannot be made: .*kvgate\.so"):
        compile_to(tmp_path / "one.so", str(lazy))
    monkeypatch.setattr(build, "_COMPILE_S", 0.2)
    slow = script(tmp_path / "slow", "cc", "exec sleep 600")
    with pytest.raises(NoNativeError, match="timed out after"):
        compile_to(tmp_path / "one.so", str(slow))


def test_a_cache_folder_that_cannot_be_written_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "native").write_text("a file where the folder should be")
    with pytest.raises(NoNativeError, match="cannot be made"):
        compile_to(tmp_path / "native" / "one.so", "cc")


def test_what_is_no_library_of_ours_is_a_reason_and_no_crash(
    native: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def makes_a_stranger(path: Path, compiler: str) -> None:
        path.parent.mkdir(parents=True)
        stranger = tmp_path / "stranger.c"
        stranger.write_text("int stranger(void) { return 1; }")
        subprocess.run([compiler, "-shared", "-fPIC", stranger, "-o", path], check=True)

    def makes_no_library(path: Path, _compiler: str) -> None:
        path.parent.mkdir(parents=True)
        path.write_text("no ELF")

    monkeypatch.setattr(build, "compile_to", makes_a_stranger)
    with pytest.raises(NoNativeError, match=r"\.so: .*kvgate_"):
        library(cached(tmp_path / "one"))
    monkeypatch.setattr(build, "compile_to", makes_no_library)
    with pytest.raises(NoNativeError, match=r"\.so: "):
        library(cached(tmp_path / "two"))  # the first stays mapped into this process


def test_a_library_that_computes_otherwise_is_not_used(
    once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Library, "agrees", lambda _: False)
    with pytest.raises(NoNativeError, match="computes other numbers than it should"):
        library(cached(once.parent.parent))


def test_two_processes_that_compile_at_once_both_have_it(native: Library, tmp_path: Path) -> None:
    code = "from engine.native.build import library; print(library().path)"
    environment = {**os.environ, **cached(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    (path,) = (tmp_path / "native").iterdir()
    assert said == [str(path)] * 2
    assert build.is_whole(path)


def test_other_systems_and_processors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(NoNativeError, match="not written for Linux on aarch64"):
        cpu_features()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(NoNativeError, match="not written for Darwin on aarch64"):
        cpu_features()


def test_a_processor_that_lacks_what_is_needed_is_told_what(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx fma f16c avx2\n\nflags\t\t: fpu\n")
    assert cpu_features(cpuinfo) == {"fpu", "sse2", "avx", "fma", "f16c", "avx2"}
    cpuinfo.write_text("flags\t\t: fpu sse2 avx2\n")
    with pytest.raises(NoNativeError, match="this CPU lacks f16c, fma"):
        cpu_features(cpuinfo)
    cpuinfo.write_text("processor\t: 0\n")
    with pytest.raises(NoNativeError, match="cpuinfo does not say what this CPU can do"):
        cpu_features(cpuinfo)
    with pytest.raises(NoNativeError, match="does not say"):
        cpu_features(tmp_path / "nothing")


def test_the_version_of_the_code_is_of_its_sources_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build.code_version()
    sources = changed_sources(tmp_path, "crew.h", "#define SPINS 4000", "#define SPINS 4000")
    monkeypatch.setattr(build, "_SOURCES", sources)
    (sources / "notes.txt").write_text("no source")
    assert build.code_version() == before
    (sources / "more.h").write_text("")
    assert build.code_version() != before
