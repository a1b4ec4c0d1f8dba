"""When an upstream wants to be asked again: in milliseconds, in seconds, or as a date; pure."""

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from now: OpenAI's ``Retry-After-Ms``, else ``Retry-After`` (RFC 9110, 10.2.3)."""
    if (wait_ms := _number(headers.get("Retry-After-Ms"))) is not None:
        return wait_ms / 1000
    said = headers.get("Retry-After")
    if said is None:
        return None
    if (wait_s := _number(said)) is not None:
        return wait_s
    try:
        then, now = (parsedate_to_datetime(text) for text in (said, headers.get("Date", "")))
        return max(0.0, (then - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _number(text: str | None) -> float | None:
    """``text`` as a number of 0 or more; ``None`` if it is none, or not a finite one."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None
