"""kvgate beside its peers, as data: ratios, tables, results put together."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.comparison import BEGIN, END, Part, Row, merged, replaced, row_of, section, table

RATES = Row("hits", "req/s", "higher", {"floor": [40.0, 60.0], "kvgate": [20.0, 30.0]})
TIMES = Row("a miss", "ms", "lower", {"LiteLLM": [8.0, 9.0], "kvgate": [0.5, 0.5]})
FACTS: dict[str, Any] = {
    "command": "python -m loadtest.compare",
    "at": "2026-11-26T12:00:00+00:00",
    "machine": {"cpu": "CPU", "cores": 2},
}


def part(**other: Any) -> Part:
    servers = {"kvgate": "0.1.0", "floor": "3.14", "LiteLLM": "1.108"}
    given: dict[str, Any] = {"facts": FACTS, "servers": servers, "rows": [RATES, TIMES]}
    return Part(**{**given, **other})


def test_more_is_better_of_rates_and_less_of_times() -> None:
    rates, times = RATES.times_as_good("floor"), TIMES.times_as_good("LiteLLM")
    assert rates is not None
    assert times is not None
    assert (rates.median, rates.low, rates.high) == (0.5, 0.5, 0.5)
    assert (times.median, times.low, times.high) == (17.0, 16.0, 18.0)


@pytest.mark.parametrize(
    "runs",
    [
        {"kvgate": [1.0]},
        {"kvgate": [1.0], "peer": []},
        {"kvgate": [1.0, 2.0], "peer": [1.0]},
        {"kvgate": [1.0], "peer": [0.0]},
        {"peer": [1.0]},
    ],
)
def test_what_cannot_be_compared_has_no_ratio(runs: dict[str, list[float]]) -> None:
    assert Row("x", "ms", "lower", runs).times_as_good("peer") is None


def test_a_row_survives_json() -> None:
    assert row_of(TIMES.as_dict()) == TIMES
    assert TIMES.as_dict()["times_as_good"] == {"LiteLLM": 17.0}


def test_the_table_has_kvgate_last_and_ratios_in_brackets() -> None:
    held = {"kvgate": 60.0, "LiteLLM": 400.0}
    assert table(part(rss_mib=held).as_dict()) == [
        "|  | unit | floor | LiteLLM | kvgate |",
        "|---|---|--:|--:|--:|",
        "| hits | req/s | 50.0 (×0.500) | – | **25.0** |",
        "| a miss | ms | – | 8.50 (×17.0) | **0.500** |",
        "| resident at the end | MiB | – | 400 | 60.0 |",
    ]


def test_parts_measured_now_take_the_place_of_those_before_and_others_stay() -> None:
    before = merged({}, {"gateway": part(rows=[RATES]), "engine": part(rows=[TIMES])})
    now = merged(before, {"gateway": part(rows=[])})
    assert now["parts"]["gateway"]["rows"] == []
    assert now["parts"]["engine"] == before["parts"]["engine"]


def test_the_section_names_versions_and_who_was_not_there() -> None:
    gone = part(absent={"nginx": "not installed"}, notes=["Others used 0.10 cores meanwhile."])
    text = section(merged({}, {"gateway": gone}))
    assert "`python -m loadtest.compare`, 2026-11-26, CPU, 2 cores." in text
    assert "LiteLLM 1.108" in text
    assert "Not there: nginx (not installed)." in text
    assert text.endswith("Others used 0.10 cores meanwhile.")


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(text, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert replaced(replaced(text, "new"), "new") == replaced(text, "new")


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}"])
def test_a_text_without_marks_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match="compare"):
        replaced(text, "new")
