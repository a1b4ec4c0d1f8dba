"""The errors of upstreams in every shape that servers send, as errors for our clients; pure.

The upstream's words always reach the client. A body in OpenAI's shape is passed on as it came, with
the members that it lacks. Of any other shape the words are found and told in OpenAI's:

=======================================  ========================================
``{"object": "error", "message": …}``    vLLM before 0.10, SGLang
``{"detail": …}``, text or a list        FastAPI
``{"error": "…"}``                       Ollama, TGI
``[{"error": {…}}]``                     Gemini's compatible API
``{"message": …}``, ``{"errors": […]}``  Mistral, Cohere, Cloudflare
text, HTML                               proxies
=======================================  ========================================
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Final

from gateway import exact_json
from gateway.backends.retry_after import retry_after_s
from gateway.errors import (
    JSON_TYPE_BY_STATUS,
    KEY_REFUSED,
    BackendFault,
    ClientFault,
    GatewayError,
    key_refused,
)
from gateway.logs import redacted
from gateway.responses import is_response
from gateway.sse import Parser

Json = dict[str, Any]

LONGEST_WORDS: Final = 2000
"""Characters of an upstream's words that are passed on."""
_MAY_PASS: Final = frozenset({408, 429})
_PASSED_BACK: Final = ("x-ratelimit-", "openai-")
_WORDS: Final = (
    "message", "msg", "detail", "error_description", "error_message", "errorMessage", "error_msg",
    "error", "errors", "status_msg", "base_resp", "fault", "faultstring", "Message", "reason", "title",
)  # fmt: skip
"""Members that hold an error's words, the most telling first."""
_TELLING: Final = frozenset(_WORDS) - {"error", "reason", "title"}
_DEPTH: Final = 6
_CODES: Final = ("code", "status", "status_code", "statusCode", "http_code", "error_code")
_KEY: Final = re.compile(r"\b(?:sk|pk|gsk|xai|hf|key)[-_][^\s,;]+|[^\s:,;]*\*{2,}[^\s,;]*")
"""What may be a part of the operator's key, masked or not."""
_TITLE: Final = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG: Final = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Words:
    """What an error says. ``members`` are those of its error object, if it has one."""

    message: str
    members: Mapping[str, Any] = field(default_factory=dict)


def refused(
    name: str,
    status: int,
    raw: bytes,
    headers: Mapping[str, str],
    *,
    now: float | None,
    secret: str | None = None,
) -> GatewayError:
    """The error that the backend ``name`` answered under a status that is no success.

    ``secret`` is the operator's key: an upstream that refuses it may quote it, or a part of it.
    """
    value = _parsed(raw)
    if status in KEY_REFUSED:
        return key_refused(name, status, raw, _without(secret, _words(value)))
    return _fault(
        name,
        status if 400 <= status < 600 else 502,
        value,
        retry_after_s=retry_after_s(headers, now=now),
        headers=passed_back(headers),
    )


def told(name: str, value: Any, *, begun: bool) -> GatewayError:
    """An error that came under status 200: in a stream, or in place of the answer.

    Before the answer has ``begun`` its status is what the error says, if it says one.
    """
    status = 502 if begun else _status_in(value)
    if status in KEY_REFUSED:
        return key_refused(name, status, exact_json.dumps(value), _without(None, _words(value)))
    return _fault(name, status, value, nameless="backend_error")


def cut(name: str, stray: bytes = b"") -> BackendFault:
    """A stream that ended too early; ``stray`` is what came in place of events."""
    message, words = f"{name} ended its stream too early", _text(stray)
    return BackendFault(
        f"{message}: {words}" if words else message, code="backend_cut", cause="cut"
    )


def bad_answer(name: str, complaint: str, raw: bytes = b"") -> BackendFault:
    """An answer that is none; ``raw`` is what came instead."""
    message, words = f"{name} {complaint}", _text(raw)
    return BackendFault(f"{message}: {words}" if words else message, code="backend_bad_answer")


def is_error(value: Any) -> bool:
    """Whether an answer under status 200, or an event of one, tells an error."""
    if not isinstance(value, dict):
        first = value[0] if isinstance(value, list) and value else None
        return isinstance(first, dict) and "error" in first
    error = value.get("error")
    if "choices" in value:  # nearly always
        return bool(error)
    if is_response(value):
        return False
    if error or value.get("object") == "error" or value.get("type") == "error":
        return True
    if not value.keys().isdisjoint(_ANSWERS):
        return False
    return error is not None or not value.keys().isdisjoint(_TELLING)


_ANSWERS: Final = frozenset({"data", "output", "response", "type", "object", "usage"})
"""Members of answers and their events: with one of them ``message`` and the like are no error."""


def passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    """What the client is told of the upstream's own headers; its request id beside ours."""
    told = {name: value for name, value in headers.items() if name.lower().startswith(_PASSED_BACK)}
    if (request_id := headers.get("X-Request-ID")) is not None:
        told["X-Upstream-Request-ID"] = request_id
    return told


def _fault(
    name: str, status: int, value: Any, *, nameless: str = "backend_refused", **more: Any
) -> GatewayError:
    said = _words(value)
    kind = ClientFault if status < 500 and status not in _MAY_PASS else BackendFault
    if said is None:
        return kind(f"{name} refused the request", code="backend_refused", status=status, **more)
    code, param = said.members.get("code"), said.members.get("param")
    nameless = "backend_error" if said.members else nameless
    return kind(
        said.message,
        code=nameless if code is None else str(code),
        status=status,
        param=param if isinstance(param, str) else None,
        body=_completed(value, said, status) if said.members else None,
        **more,
    )


def _without(secret: str | None, said: Words | None) -> str:
    """An upstream's words without what may be a part of the operator's key."""
    if said is None:
        return ""
    ends = (secret[:4], secret[-4:]) if secret else ()
    kept = [
        "[redacted]" if any(end in one for end in ends) else one for one in said.message.split(" ")
    ]
    return _KEY.sub("[redacted]", redacted(" ".join(kept)))


def _completed(value: Any, said: Words, status: int) -> Json:
    """An error object with all four members; what stands beside the upstream's own stays there."""
    kind = JSON_TYPE_BY_STATUS.get(status, "server_error" if status >= 500 else "api_error")
    own = value.get("error") if isinstance(value, dict) else None
    if not isinstance(own, dict):
        return {"error": {"type": kind, "param": None, "code": None, **said.members}}
    error = {"message": said.message, "type": kind, "param": None, "code": None, **own}
    if not isinstance(own.get("message"), str):
        error["message"] = said.message
    return {**value, "error": error}


def _words(value: Any, depth: int = 0) -> Words | None:
    """The words of an error of any shape; ``None`` when it says nothing."""
    match value:
        case bytes():
            return _words(_text(value), depth)
        case str() if text := value.strip():
            return Words(_shortened(text))
        case list() if depth < _DEPTH:
            found = [one for item in value[:20] if (one := _words(item, depth + 1)) is not None]
            if not found:
                return None
            text = _shortened("; ".join(one.message for one in found))
            return Words(text, {**found[0].members, "message": text} if found[0].members else {})
        case dict() if depth < _DEPTH and value:
            return _words_of_object(value, depth)
        case _:
            return None


def _words_of_object(value: Json, depth: int) -> Words:
    if isinstance(value.get("msg"), str) and isinstance(value.get("loc"), list):
        return _words_of_pydantic(value)
    for name in _WORDS:
        found = _words(value.get(name), depth + 1)
        if found is not None and found.members:
            return found
        if found is not None:
            return Words(found.message, _members(value, name, found.message, inner=depth > 0))
    return Words(_shortened(_compact(value)))


def _members(value: Json, name: str, message: str, *, inner: bool) -> Json:
    """The members of an error object: its own, without the one that held the words."""
    rest = {key: one for key, one in value.items() if key not in {name, "object", "error"}}
    if name != "error" and isinstance(error := value.get("error"), str):
        rest.setdefault("code", error)
    for alias in _CODES[1:]:
        if rest.get("code") is None and isinstance(code := value.get(alias), str | int):
            rest["code"] = code
    if isinstance(kind := rest.pop("type", value.get("error_type")), str) and kind != "error":
        rest["type"] = kind
    return {"message": message, **rest} if rest or inner else {}


def _words_of_pydantic(value: Json) -> Words:
    """One of FastAPI's complaints: what, and about which field."""
    place = [str(one) for one in value["loc"]]
    shown = place[1:] if place[:1] == ["body"] and len(place) > 1 else place
    message = f"{'.'.join(place)}: {value['msg']}"
    return Words(message, {"message": message, "param": ".".join(shown)})


def _status_in(value: Any) -> int:
    """The status that an error names in its own words; 502 when it names none."""
    for one in _objects(value):
        for name in _CODES:
            code = one.get(name)
            if isinstance(code, str) and len(code) == 3 and code.isdecimal():
                code = int(code)
            if isinstance(code, int) and 400 <= code < 600:
                return code
    return 502


def _objects(value: Any, depth: int = 0) -> Iterator[Json]:
    if isinstance(value, list) and value:
        yield from _objects(value[0], depth)
    elif isinstance(value, dict) and depth < _DEPTH:
        for name in ("error", "detail", "errors"):
            yield from _objects(value.get(name), depth + 1)
        yield value


def _parsed(raw: bytes) -> Any:
    if raw.lstrip().startswith((b"data:", b"event:")):  # some refuse a stream in a stream's words
        parser = Parser()
        raw = next((event.data for event in (*parser.feed(raw), *parser.close())), raw)
    try:
        value = exact_json.loads_answer(raw)
    except exact_json.JSONDecodeError:
        return raw
    return value if isinstance(value, str | list | dict) else raw


def _compact(value: Any) -> str:
    try:
        return exact_json.dumps(value).decode()
    except exact_json.JSONEncodeError:
        return ""


def _text(raw: bytes) -> str:
    """Text that is no JSON: of a page its title, else what it says, on one line, without keys."""
    text = raw[: 8 * LONGEST_WORDS].decode(errors="replace")
    if text.lstrip().startswith("<"):
        title = _TITLE.search(text)
        text = unescape(title[1] if title else _TAG.sub(" ", text))
    return _shortened(redacted(" ".join(text.split())))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS]}…"
