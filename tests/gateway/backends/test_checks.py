"""What a backend is asked to find out whether it is there, and how the operator is told."""

import pytest

from gateway.backends.base import Forwarded
from gateway.backends.checks import is_alive, report
from gateway.errors import BackendFault
from tests.kit.checkable import GONE, LISTED, Checkable


@pytest.mark.parametrize(
    ("health", "models", "alive"),
    [
        (200, 404, True),
        (503, 200, False),
        (500, 200, False),
        (404, 200, True),
        (404, 404, True),
        (404, 502, None),
        (None, 200, True),
        (None, 401, True),
        (None, 503, None),
    ],
)
async def test_a_health_route_is_believed_and_else_any_answer_is_life(
    health: int | None, models: int, alive: bool | None
) -> None:
    assert await is_alive(Checkable(Forwarded(models, {}, b""), health)) is alive


async def test_a_backend_that_cannot_be_reached_is_not_alive() -> None:
    assert await is_alive(Checkable(GONE)) is False


def said(status: int, raw: bytes = b"") -> Forwarded:
    return Forwarded(status, {}, raw)


NO_MODELS = "http://up/models is 404. base_url is what stands before /chat/completions"
REPORTS: dict[str, tuple[Forwarded | BackendFault, Forwarded, str]] = {
    "well": (LISTED, said(404), "ok, 2 models: m1, m2; the configuration also names x"),
    "gone": (GONE, said(404), "http://up: up cannot be reached"),
    "no route": (said(404), said(404), NO_MODELS),
    "half an address": (said(404), LISTED, f"{NO_MODELS}: try http://up/v1"),
    "key": (said(401, b"no"), said(404), "its key was refused: HTTP 401 no"),
    "a page": (said(200, b"<>"), said(404), "http://up/models is no list of models (HTTP 200)"),
    "an error": (said(500, b"[]"), said(404), "http://up/models is no list of models (HTTP 500)"),
}


@pytest.mark.parametrize("case", list(REPORTS))
async def test_a_report_is_one_line_that_says_what_to_do(case: str) -> None:
    models, better, says = REPORTS[case]
    backend = Checkable(models)
    backend.better = better
    found = await report(backend, "http://up", ["m1", "x", "*"], limit_s=1.0)
    assert found.says == says
    assert found.is_well == (case == "well")
    assert found.is_reached == (case != "gone")
