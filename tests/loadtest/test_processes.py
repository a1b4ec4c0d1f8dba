"""Servers as child processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loadtest.processes import Program, Server, free_port


def test_a_server_is_ready_and_ends_with_its_context(tmp_path: Path) -> None:
    with Server("loadtest.floors", "bare", "--port", "{port}", log=tmp_path / "log") as server:
        assert server.cpu_s() > 0
        pid = server.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_program_that_ends_at_once_is_told_with_what_it_said(tmp_path: Path) -> None:
    code = "import sys; print('no such luck'); sys.exit(3)"
    program = Program([sys.executable, "-c", code], free_port(), log=tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"no such luck\n\nIt ended with 3"), program:
        pass
