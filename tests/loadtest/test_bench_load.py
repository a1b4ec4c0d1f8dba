"""The arithmetic of the benchmark; the rest of it is run by hand."""

import pytest
from rich.console import Console

from loadtest.bench_load import Measured, Pace, table
from loadtest.stats import spread


def test_what_is_compared_with_the_bars() -> None:
    found = Measured(
        quiet=Pace(20.0, 30.0, 40.0, 900.0),
        beside=Pace(25.0, 75.0, 90.0, 700.0),
        chunk_ms=40.0,
        alone_ms=spread([50.0, 60.0, 70.0]),
        crowded_ms=spread([80.0, 90.0, 100.0]),
        held_ms=12.0,
        held_steps=1,
        ready_mib=600.0,
        most_mib=1112.0,
        budget_mib=1024.0,
        failures=0,
    )
    assert found.p99_times == 2.5
    assert found.late_chunks == 0.75
    assert found.memory_share == pytest.approx(0.5)
    console = Console(width=120, record=True)
    console.print(table(found))
    said = console.export_text()
    assert "2.50" in said
    assert "0.750" in said
    assert "512 of 1020" in said
