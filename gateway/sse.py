"""Server-sent events as OpenAI uses them: JSON to bytes and bytes to JSON, no IO.

Grammar: WHATWG HTML, section 9.2. Comments are skipped, ``data`` lines of one event are
joined by a newline, and a line may end in LF, CR LF or CR.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
DONE: Final = b"data: [DONE]\n\n"
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name (``""`` when it has none) and its data."""

    name: str
    data: bytes


class EventTooLarge(ValueError):
    """The other side sent more than :data:`MAX_EVENT_BYTES` without ending its event."""


def encode(data: Any) -> bytes:
    """One ``data:`` event that holds ``data`` as JSON."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class Parser:
    """Bytes in, cut anywhere; whole events out.

    An event that is not yet ended by an empty line stays inside: a stream that breaks off in
    the middle of an event yields nothing for it.
    """

    __slots__ = ("_data", "_name", "_rest", "_size")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._name = ""
        self._size = 0

    def feed(self, received: bytes) -> Iterator[Event]:
        """The events that ``received`` completes.

        Raises:
            EventTooLarge: an event is larger than :data:`MAX_EVENT_BYTES`.
        """
        buffer = self._rest + received
        # A CR at the very end may be half of CR LF: wait for what follows.
        held = b"\r" if buffer.endswith(b"\r") else b""
        text = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise EventTooLarge("an event exceeds the size limit")
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                yield Event(self._name, b"\n".join(self._data))
                self._reset()
            else:
                self._reset()

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
        elif name == b"event":
            self._name = value.decode(errors="replace")

    def _reset(self) -> None:
        self._data = []
        self._name = ""
        self._size = 0
