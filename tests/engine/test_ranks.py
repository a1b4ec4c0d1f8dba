"""Other ranks' processes: who ended, and that none is left."""

import os
import sys
import threading

import pytest

from engine.errors import ConfigError
from engine.ranks import Ranks, end_all

WAITING = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def test_one_that_ends_unasked_is_told_with_its_number() -> None:
    ranks, heard, told = Ranks(), list[str](), threading.Event()
    ranks.start(WAITING, path="")
    ranks.start([sys.executable, "-S", "-c", "raise SystemExit(78)"], path="")

    def on_lost(what: str) -> None:
        heard.append(what)
        told.set()

    ranks.watch(on_lost)
    assert told.wait(30)
    assert heard == ["rank 2 cannot start, and has said why"] == [ranks.lost()]
    ranks.end()
    assert len(heard) == 1  # who is ended is not lost


def test_at_the_end_all_are_gone_with_their_folder_and_nobody_starts_any_more() -> None:
    ranks = Ranks()
    ranks.start(WAITING, path="")
    (pid,) = [process.pid for process in ranks._processes]
    assert ranks.lost() is None
    end_all()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not ranks.folder.exists()
    with pytest.raises(ConfigError, match="the engine is ending"):
        ranks.start(WAITING, path="")
    assert ranks.lost() == "rank 1 has ended, with -9"
