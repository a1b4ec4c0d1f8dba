"""The tables say what the runs say."""

from gateway.cli_replay_tables import _size, curve, recommendations, tiers
from gateway.whatif_advice import Advice
from gateway.whatif_run import Runner
from gateway.whatif_sweep import parse_sweep, swept
from tests.kit.journals import asked_and_stored, hit, trace_of


def runner() -> Runner:
    return Runner(trace_of([*asked_and_stored(0.0, "a"), hit(5.0, "a")]), token_bytes=100)


def column(table: object, place: int) -> list[str]:
    return [str(cell) for cell in table.columns[place].cells]  # type: ignore[attr-defined]  # rich's


def test_each_tier_has_a_row() -> None:
    one = runner()
    run = one.run(one.as_recorded())
    shown = tiers([run])
    assert column(shown, 0) == ["  hot", "  warm", "  cold"]
    assert column(shown, 1) == ["0", "1", "0"]
    assert column(shown, 2)[1] == "1.953KiB"
    assert "as recorded" in column(tiers([run, run]), 0)


def test_a_curve_of_a_tier_counts_what_the_store_let_go() -> None:
    one = runner()
    sweep = parse_sweep("warm=1KiB,4KiB")
    shown = curve(sweep, swept(one, one.as_recorded(), sweep))
    assert column(shown, 0) == ["1KiB", "4KiB"]
    assert [str(table.header) for table in shown.columns][:4] == [
        "warm", "kvgate", "optimum", "without bound",
    ]  # fmt: skip


def test_recommendations_have_units_and_none_is_said_too() -> None:
    ttl = Advice("tiers.hot.ttl", 300.0, 600.0, 5, 0.01, 100, 0.5, "because")
    size = Advice("engine.kv_memory", 2**30, 2**31, -5, -0.01, -100, -0.5, "why")
    shown = recommendations([ttl, size])
    assert column(shown, 1) == ["300 s", "1GiB"]
    assert column(shown, 3) == ["+5", "-5"]
    assert column(recommendations([]), 0) == ["nothing"]


def test_sizes_have_the_unit_that_fits() -> None:
    assert [_size(size) for size in (0, 1023, 2**20, 3 * 2**29, 2**43)] == [
        "0B", "1023B", "1MiB", "1.5GiB", "8TiB",
    ]  # fmt: skip
