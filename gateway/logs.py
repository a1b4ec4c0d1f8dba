"""What the operator reads: one line per event, for people or for machines.

Built on structlog with one processor of our own per format, because a line is written for every
request: measured on two cores, a line of ten fields costs 7 µs as JSON and 10 µs on the console,
escaping included, where structlog's own renderers cost 7 and 25 without it.

Fields by name in each line: ``ts``, ``severity`` (``level`` is the cache's word for what
answered), ``logger``, ``event``, then what the caller said. A field named like a secret or like a
user's text is never written; what other libraries log is searched for keys; control characters
are escaped in every format, so that no value can forge a line or move a terminal's cursor.
"""

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

LogFormat = Literal["console", "json"]

SEVERITIES: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
PIPE_BUF: Final = 4096
"""What a pipe takes in one piece on Linux (limits.h); elsewhere it is less, or the same."""
NEVER_WRITTEN: Final = frozenset(
    {"api_key", "authorization", "body", "content", "headers", "input", "messages", "password",
     "prompt", "secret", "token"}
)  # fmt: skip
KEY_LIKE: Final = re.compile(r"(?i)(?:bearer\s+|api[-_]?key\W{1,4})\S+|\bsk-[\w-]{6,}")
COLUMNS: Final = {
    "status": 3,
    "level": -8,
    "tier": -4,
    "ms": 9,
}  # of a request; negative: to the left
COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}


def configure(
    level: str, log_format: LogFormat, stream: TextIO, *, worker: int | None = None
) -> None:
    """Send every log line of the process to ``stream``, from ``level`` on.

    Of several ``worker`` processes with one log each says its number.
    Loggers are cached when first used: call this before anything logs.
    """
    threshold = SEVERITIES[level]
    render = renderer(log_format, stream, worker=worker)
    structlog.configure(
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *names: Sink(stream, *names),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in [known for known in root.handlers if isinstance(known, Bridge)]:
        root.removeHandler(handler)
    root.addHandler(Bridge())
    # libraries are asked for their warnings; their chatter only when somebody is looking for it
    root.setLevel(max(threshold, logging.WARNING) if threshold > logging.DEBUG else logging.INFO)


def catch_stray() -> None:
    """Have the process log what Python would write to standard error itself, if a log is configured.

    That is what ends a thread or the process, what a destructor raises, and warnings.
    """

    def log(error: BaseException | None, where: str) -> bool:
        if error is None or isinstance(error, KeyboardInterrupt) or not structlog.is_configured():
            return False
        structlog.get_logger("kvgate").critical("defect", where=where, exc_info=error)
        return True

    def of_process(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not log(error, "process"):
            sys.__excepthook__(kind, error, trace)

    def of_thread(of: threading.ExceptHookArgs) -> None:
        if not log(of.exc_value, "thread"):
            threading.__excepthook__(of)

    def of_destructor(of: "sys.UnraisableHookArgs") -> None:
        if not log(of.exc_value, "destructor"):
            sys.__unraisablehook__(of)

    sys.excepthook, threading.excepthook, sys.unraisablehook = of_process, of_thread, of_destructor
    logging.captureWarnings(capture=True)


class Sink:
    """Where finished lines go. A log that cannot be written never fails a request.

    Several processes may write to one pipe: what is written at once is no longer than the system
    keeps together, or a single line.
    """

    __slots__ = ("_flush", "_write", "name")

    def __init__(self, stream: TextIO, name: str = "kvgate") -> None:
        self.name = name
        binary = getattr(stream, "buffer", None)
        self._write = binary.write if binary else lambda line: stream.write(line.decode())
        self._flush = stream.flush if binary is None else binary.flush

    def msg(self, lines: bytes) -> None:
        """Write a line, or several, at once."""
        with suppress(OSError, ValueError):  # a closed pipe, a closed file
            for portion in _portions(lines) if len(lines) > PIPE_BUF else (lines,):
                self._write(portion)
                self._flush()

    debug = info = warning = error = critical = exception = msg


def _portions(lines: bytes) -> Iterator[bytes]:
    while len(lines) > PIPE_BUF:
        end = lines.rfind(b"\n", 0, PIPE_BUF) + 1 or lines.find(b"\n") + 1 or len(lines)
        yield lines[:end]
        lines = lines[end:]
    if lines:
        yield lines


class Bridge(logging.Handler):
    """Lines of other libraries, in our format and searched for keys."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record of the standard library's logging."""
        try:
            message = redacted(record.getMessage())
            logger = structlog.get_logger(record.name)
            logger.log(record.levelno, message, exc_info=record.exc_info or None)
        except Exception:  # noqa: BLE001  # logging must not fail; this is its own way to say so
            self.handleError(record)


def renderer(
    log_format: LogFormat, stream: TextIO, *, worker: int | None = None
) -> "JsonLine | ConsoleLine":
    """What makes a line of an event, in this format and for this stream."""
    if log_format == "json":
        return JsonLine(worker=worker)
    return ConsoleLine(colours=stream.isatty(), worker=worker)


class JsonLine:
    """One JSON object per line."""

    __slots__ = ("_worker",)

    def __init__(self, *, worker: int | None = None) -> None:
        self._worker = {} if worker is None else {"worker": worker}

    def __call__(self, logger: Any, method: str, event: Mapping[str, Any]) -> bytes:
        line: dict[str, Any] = {
            "ts": timestamp(),
            "severity": method,
            "logger": logger.name,
            "event": "",
            **self._worker,
        }
        line |= _safe(event)
        try:
            raw = orjson.dumps(line, default=repr, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # lone surrogates, keys that are not text
            raw = json.dumps(line, default=repr, skipkeys=True).encode() + b"\n"
        if raw.isascii() and b"\x7f" not in raw:
            return raw
        return escaped(raw[:-1].decode(), json_text=True).encode() + b"\n"


class ConsoleLine:
    """``12:31:05.123 info    request  200 response hot      0.412 id=...``."""

    __slots__ = ("end", "severities")

    def __init__(self, *, colours: bool, worker: int | None = None) -> None:
        self.end = "" if worker is None else f" worker={worker}"
        self.severities = {
            name: f"\x1b[{code}m{name:<8}\x1b[0m" if colours else f"{name:<8}"
            for name, code in COLOURS.items()
        }

    def __call__(self, logger: Any, method: str, event: Mapping[str, Any]) -> bytes:
        fields = _safe(event)
        severity = self.severities.get(method, method)
        words = [timestamp()[11:23], severity, escaped(str(fields.pop("event", "")))]
        trace = fields.pop("exception", None)
        if logger.name == "kvgate.request":
            words += [_column(fields.pop(name, "-"), width) for name, width in COLUMNS.items()]
        words += [f"{key}={word(value)}" for key, value in fields.items() if value is not None]
        text = " ".join(words) + self.end
        if trace:
            text += "".join(f"\n    {escaped(line)}" for line in trace.splitlines())
        return (text + "\n").encode("utf-8", "backslashreplace")


def timestamp() -> str:
    """Now, in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _safe(event: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that may be written; a traceback as text."""
    fields = dict(event)
    if not NEVER_WRITTEN.isdisjoint(fields):
        for name in NEVER_WRITTEN & fields.keys():
            fields[name] = "[not logged]"
    exc_info = fields.pop("exc_info", None)
    if exc_info:
        fields["exception"] = _traceback(exc_info)
    return fields


def _traceback(exc_info: Any) -> str:
    match exc_info:
        case BaseException():
            error: BaseException | None = exc_info
        case (_, BaseException() as held, _):
            error = held
        case _:
            error = sys.exception()
    return redacted("".join(traceback.format_exception(error))) if error else "unknown"


def redacted(text: str) -> str:
    """``text`` without what looks like a key."""
    return KEY_LIKE.sub("[redacted]", text)


def escaped(text: str, *, json_text: bool = False) -> str:
    """``text`` with every unprintable character (controls, direction marks) spelled out."""
    if text.isprintable():
        return text
    if json_text:
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def word(value: object) -> str:
    """A value as one word of a line for people."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = escaped(value if isinstance(value, str) else str(value))
    return f'"{text}"' if " " in text or not text else text


def _column(value: object, width: int) -> str:
    text = "-" if value is None else word(value)
    return text.ljust(-width) if width < 0 else text.rjust(width)
