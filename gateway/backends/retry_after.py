"""When an upstream wants to be asked again: in milliseconds, in seconds, or as a date; pure."""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_S: Final = 86_400.0
"""No longer wait is passed on: an upstream that names one is wrong, or its clock is."""
_NUMBER: Final = re.compile(r"\s*(-?)[0-9]{1,300}(\.[0-9]{0,300})?\s*", re.ASCII)


def retry_after_s(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds from now: OpenAI's ``Retry-After-Ms``, else ``Retry-After`` (RFC 9110, 10.2.3).

    A date is measured by the upstream's own clock where it tells its ``Date``, else by ``now`` (unix
    time, if it is known). The wait is between 0 and a day.
    """
    if (wait_ms := _number(headers.get("Retry-After-Ms"))) is not None:
        return min(wait_ms / 1000, LONGEST_S)
    said = headers.get("Retry-After")
    if said is None:
        return None
    wait_s = _number(said)
    if wait_s is None and (then := _date(said)) is not None:
        since = _date(headers.get("Date")) or now
        wait_s = None if since is None else max(0.0, then - since)
    return None if wait_s is None else min(wait_s, LONGEST_S)


def _date(text: str | None) -> float | None:
    """Unix time of an HTTP date. A date without a zone is UTC, as RFC 9110 wants."""
    try:
        found = parsedate_to_datetime(text or "")
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _number(text: str | None) -> float | None:
    """``text`` as a decimal number; a negative one is 0. ``None`` if it is none."""
    found = _NUMBER.fullmatch(text or "")
    return None if found is None else (0.0 if found[1] else float(found[0]))
