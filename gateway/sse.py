"""Server-sent events as OpenAI uses them: JSON to bytes and bytes to JSON, no IO.

Grammar: WHATWG HTML, section 9.2. Comments are skipped, ``data`` lines of one event are
joined by a newline, a line may end in LF, CR LF or CR, and one byte order mark may lead.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from gateway import exact_json

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
    return b"data: " + exact_json.dumps(data) + b"\n\n"


def encode_named(name: str, data: Any) -> bytes:
    """The same under a name."""
    return b"event: %b\n%b" % (name.encode(), encode(data))


class Parser:
    """Bytes in, cut anywhere; whole events out.

    An event that is not yet ended by an empty line stays inside: a stream that breaks off in
    the middle of an event yields nothing for it.
    """

    __slots__ = ("_begun", "_data", "_half_end", "_name", "_rest", "_rest_size", "_size")

    def __init__(self) -> None:
        self._begun = False
        self._half_end = b""  # a CR at the very end may be half of CR LF
        self._rest: list[bytes] = []  # the pieces of a line that is not yet ended
        self._rest_size = 0
        self._data: list[bytes] = []
        self._name = ""
        self._size = 0

    def feed(self, received: bytes) -> Iterator[Event]:
        """The events that ``received`` completes.

        Raises:
            EventTooLarge: an event is larger than :data:`MAX_EVENT_BYTES`.
        """
        text = self._half_end + received
        self._half_end = text[-1:] if text.endswith(b"\r") else b""
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            if not self._begun:
                self._begun = True
                lines[0] = lines[0].removeprefix(BOM_UTF8)
            self._rest, self._rest_size = [], 0
        self._rest.append(rest)
        self._rest_size += len(rest)
        for line in lines:
            if line:
                self._field(line)
            else:
                if self._data:
                    yield Event(self._name, b"\n".join(self._data))
                self._data, self._name, self._size = [], "", 0
        self._check_size()

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
            self._check_size()
        elif name == b"event":
            self._name = value.decode(errors="replace")

    def _check_size(self) -> None:
        if self._rest_size + self._size > MAX_EVENT_BYTES:
            raise EventTooLarge("an event exceeds the size limit")
