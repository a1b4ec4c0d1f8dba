"""One chat completion at a time over one connection, with the moment of each word."""

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, cast

from loadtest.answers import DONE, Heard, data_of, heard, heard_stream, text_of

PATH: Final = "/v1/chat/completions"
WAIT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its times in seconds, counted from the moment before the request was sent.

    ``word_s`` has the moment of each piece of text as it came; of a plain answer there is none.
    """

    heard: Heard
    usage: Mapping[str, Any]
    total_s: float
    word_s: tuple[float, ...] = ()

    @property
    def first_s(self) -> float:
        """Time to the first token."""
        return self.word_s[0]

    @property
    def hit_tokens(self) -> int:
        """Prompt tokens that the engine had."""
        return int(self.usage["prompt_cache_hit_tokens"])

    @property
    def prompt_tokens(self) -> int:
        """All prompt tokens."""
        return int(self.usage["prompt_tokens"])

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""
        return int(self.usage["completion_tokens"])


class Asker:
    """A keep-alive connection to the server at ``port`` of loopback. A context manager."""

    def __init__(self, port: int, *, model: str = "default") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        self._connection.connect()
        self._model = model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def plain(self, messages: list[dict[str, str]], **fields: Any) -> Answer:
        """A plain answer. Raises: BadAnswerError, OSError."""
        response, began_s = self._post({"messages": messages, **fields})
        body = response.read()
        total_s = time.perf_counter() - began_s
        said = heard(response.status, _headers(response), body)
        return Answer(said, json.loads(body)["usage"], total_s)

    def stream(self, messages: list[dict[str, str]], **fields: Any) -> Answer:
        """A streamed answer, read to its end. Raises: BadAnswerError, OSError."""
        wish = {"stream": True, "stream_options": {"include_usage": True}}
        response, began_s = self._post({"messages": messages, **wish, **fields})
        lines: list[str] = []
        word_s: list[float] = []
        usage: Mapping[str, Any] = {}
        while line := response.readline().decode():
            now_s = time.perf_counter() - began_s
            lines.append(line)
            data = data_of(line)
            if data is None or data == DONE:
                continue
            if text_of(data):
                word_s.append(now_s)
            usage = json.loads(data).get("usage") or usage
        said = heard_stream(response.status, _headers(response), lines)
        return Answer(said, usage, time.perf_counter() - began_s, tuple(word_s))

    def _post(self, body: Mapping[str, Any]) -> tuple[http.client.HTTPResponse, float]:
        raw = json.dumps({"model": self._model, "temperature": 0, **body}).encode()
        began_s = time.perf_counter()
        self._connection.request("POST", PATH, raw, {"Content-Type": "application/json"})
        return self._connection.getresponse(), began_s


def _headers(response: http.client.HTTPResponse) -> Mapping[str, str]:
    return cast(Mapping[str, str], response.headers)  # finds names in any case
