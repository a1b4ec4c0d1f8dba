"""When to come back, in all the ways that upstreams say it."""

import pytest

from gateway.backends.retry_after import retry_after_s

DATE = "Thu, 26 Nov 2026 12:00:00 GMT"


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
        ({"Retry-After": "Thu, 26 Nov 2026 12:00:30 GMT"}, None),
    ],
)
def test_the_wait_is_in_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds
