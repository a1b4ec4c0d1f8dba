"""Whose blocks may be read back by whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine import fingerprint
from engine.fingerprint import block_fingerprint, code_version, digest_of
from engine.kv.cache import KvCache
from tests.kit.kv import layout_of

LAYOUT = layout_of(layers=2, heads=1, dim=4, block_tokens=8)
CPU = torch.device("cpu")


def made(root: str = "m", *, tiles: str = "t", **changes: object) -> bytes:
    dtype = changes.pop("dtype", torch.float32)
    layout = replace(LAYOUT, **changes)  # type: ignore[arg-type]  # named at the call
    assert isinstance(dtype, torch.dtype)
    return block_fingerprint(root, KvCache(layout, 1, device=CPU, dtype=dtype), tiles=tiles)


def test_it_is_the_same_for_the_same_and_another_for_anything_else() -> None:
    assert made() == made()
    others = {
        made("n"),
        made(tiles="u"),
        made(dtype=torch.bfloat16),
        made(element="bfloat16"),
        made(block_tokens=16),
        made(layers=3),
        made(),
    }
    assert len(others) == 7


def test_threads_processor_and_code_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made()
    for name, value in (
        ("code_version", lambda: "other"),
        ("_processor", lambda: "other"),
        ("_accelerator", lambda device: "other"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(fingerprint, name, value)
            assert made() != before, name
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert made() != before
    finally:
        torch.set_num_threads(threads)
    assert made() == before


def test_the_codes_version_is_that_of_the_rooms_that_compute() -> None:
    names = [name for name, _ in fingerprint._sources()]
    assert "runner.py" in names
    assert "models/attention.py" in names
    assert "server.py" not in names
    assert len(code_version()) == 32
    assert digest_of([("a", b"bc")]) != digest_of([("ab", b"c")])
