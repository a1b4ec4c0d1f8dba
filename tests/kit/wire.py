"""What the tests of upstreams' odd answers share: a good answer, and what follows an error."""

from typing import Any

import orjson

from tests.kit.scripted_upstream import WORDS, chat_events
from tests.kit.service import Answer, Service

ASKED = {"model": "m"}
TEXT = "".join(WORDS)
CHUNKS = chat_events(ASKED)


async def is_answered_anew(service: Service, **body: Any) -> None:
    """Nothing was stored: the next call reaches the upstream, which is well by now."""
    await service.settled()
    service.upstream.replies.clear()
    answer = await service.chat(True, **body)
    assert (answer.status, answer.text) == (200, TEXT)
    assert answer.headers["X-Cache-Level"] == "none"


def last_error(answer: Answer) -> dict[str, Any]:
    """The error event that ends a stream, which has no ``[DONE]``."""
    assert answer.status == 200
    assert b"[DONE]" not in answer.raw
    error: dict[str, Any] = orjson.loads(answer.events[-1])["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    return error
