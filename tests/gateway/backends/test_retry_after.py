"""When to come back, in all the ways that upstreams say it."""

from datetime import UTC, datetime

import pytest

from gateway.backends.retry_after import LONGEST_S, retry_after_s

DATE = "Thu, 26 Nov 2026 12:00:00 GMT"
NOW = datetime(2026, 11, 26, 12, 0, 10, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "-7"}, 0.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon", "Date": DATE}, None),
        ({"Retry-After": "7", "Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After": "7", "Retry-After-Ms": "x"}, 7.0),
        ({"Retry-After": "Thu, 26 Nov 2026 12:00:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Thu, 26 Nov 2026 11:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Thu, 26 Nov 2026 12:00:30 GMT"}, 20.0),
        ({"Retry-After": "Thu, 26 Nov 2026 12:00:30 GMT", "Date": "never"}, 20.0),
        ({"Retry-After": "Thu, 26 Nov 2026 12:00:30 -0000"}, 20.0),
        ({"Retry-After": "Thu, 26 Nov 2026 12:00:00 GMT"}, 0.0),
        ({"Retry-After": "Thu, 26 Nov 2099 12:00:00 GMT", "Date": DATE}, LONGEST_S),
        ({"Retry-After": "Thu, 26 Nov 99999 12:00:00 GMT"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "9" * 200}, LONGEST_S),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "1_0"}, None),
        ({"Retry-After": "\u0663"}, None),
        ({"Retry-After": "7, 7"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After-Ms": "9" * 200}, LONGEST_S),
        ({"Retry-After-Ms": "-5"}, 0.0),
    ],
)
def test_the_wait_is_in_seconds_and_at_most_a_day(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_s(headers, now=NOW) == seconds


def test_a_date_needs_a_clock_to_be_measured_by() -> None:
    assert retry_after_s({"Retry-After": "Thu, 26 Nov 2026 12:00:30 GMT"}) is None
