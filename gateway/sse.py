"""Server-sent events as OpenAI uses them: JSON to bytes and bytes to JSON, no IO.

Grammar: WHATWG HTML, section 9.2: ``data`` lines of one event are joined by a newline, a line may
end in LF, CR LF or CR, and one byte order mark may lead. The parser is more lenient than the standard
where clients are: ``[DONE]`` is an event of its own and needs no empty line, and :meth:`Parser.close`
gives out an event whose empty line never came.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from gateway import exact_json

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
DONE: Final = b"data: [DONE]\n\n"
DONE_DATA: Final = b"[DONE]"
COMMENT: Final = b": \n\n"
"""Tells a client, and the proxies before it, that a quiet stream lives."""
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
MAX_ASIDE_BYTES: Final = 4096
"""Of comments in one portion, and of lines that belong to no event: more is dropped."""
_IGNORED: Final = frozenset({b"id", b"retry"})


class Event(NamedTuple):
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

    ``comments`` are the comment lines since the caller last emptied it. ``stray`` are lines that are
    neither field nor comment: a proxy or a server writes an error that way.
    """

    __slots__ = (
        "_begun",
        "_data",
        "_half_end",
        "_name",
        "_rest",
        "_rest_size",
        "_size",
        "comments",
        "stray",
    )

    def __init__(self) -> None:
        self.comments: list[bytes] = []
        self.stray: list[bytes] = []
        self._begun = False
        self._half_end = b""  # a CR at the very end may be half of CR LF
        self._rest: list[bytes] = []  # the pieces of a line that is not yet ended
        self._rest_size = 0
        self._data: list[bytes] = []
        self._name = ""
        self._size = 0

    def feed(self, received: bytes) -> Iterator[Event]:
        """See :meth:`events`."""
        yield from self.events(received)

    def events(self, received: bytes) -> list[Event]:
        """The events that ``received`` completes.

        Raises:
            EventTooLarge: an event is larger than :data:`MAX_EVENT_BYTES`.
        """
        if received[:7] == b"data: {" and received[-2:] == b"\n\n" and self._is_between():
            data = received[6:-2]  # one event, as nearly always, and no more ado
            if b"\n" not in data and b"\r" not in data and len(data) <= MAX_EVENT_BYTES:
                self._begun = True
                return [Event("", data)]
        text = self._half_end + received
        self._half_end = b""
        if b"\r" in text:
            self._half_end = text[-1:] if text.endswith(b"\r") else b""
            text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest, self._rest_size = [], 0
        self._rest.append(rest)
        self._rest_size += len(rest)
        ready: list[Event] = []
        for line in lines:
            self._line(line, ready)
        self._check_size()
        return ready

    def close(self) -> Iterator[Event]:
        """The stream has ended: an event that only lacks the end of its line, or its empty line."""
        ready: list[Event] = []
        self._line(b"".join(self._rest), ready)
        self._rest, self._rest_size = [], 0
        self._dispatch(ready)
        yield from ready

    def _is_between(self) -> bool:
        return not (self._rest_size or self._data or self._name or self._half_end)

    def _line(self, line: bytes, ready: list[Event]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(BOM_UTF8)
        if not line:
            self._dispatch(ready)
            return
        name, colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            if value.strip() == DONE_DATA:
                self._dispatch(ready)
                ready.append(Event("", DONE_DATA))
                return
            self._data.append(value)
            self._size += len(value)
            self._check_size()
        elif name == b"event":
            self._name = value.decode(errors="replace")
        elif name == b"error" and value:  # llama.cpp's way to tell an error
            ready.append(Event("error", value))
        elif not name and colon:
            _set_aside(self.comments, line)
        elif name not in _IGNORED:
            _set_aside(self.stray, line)

    def _dispatch(self, ready: list[Event]) -> None:
        if self._data:
            ready.append(Event(self._name, b"\n".join(self._data)))
            self._data, self._size = [], 0
        self._name = ""

    def _check_size(self) -> None:
        if self._rest_size + self._size > MAX_EVENT_BYTES:
            raise EventTooLarge("an event exceeds the size limit")


def _set_aside(lines: list[bytes], line: bytes) -> None:
    if sum(map(len, lines)) + len(line) <= MAX_ASIDE_BYTES:
        lines.append(line)
