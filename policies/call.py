"""The model request as data, and the canonical form that says when two requests are the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from policies.json_text import encode, pieces
from policies.numbers import MARK, ExactNumber, canonical_text, unmarked

Endpoint = Literal["chat", "completions", "embeddings", "responses"]

# What cannot change the answer, or is keyed on its own (the model). Everything else, known or
# unknown, is part of the canonical form: a field forgotten here costs a miss, never an answer.
NOT_IN_THE_ANSWER: Final = frozenset(
    {"model", "stream", "stream_options", "user", "metadata", "kv_cache", "prompt_cache_key"}
)
DEFAULT_MODEL: Final = (
    "default"  # the first one served; where any name is served, the backend's own
)
MAX_DEPTH: Final = 128  # JSON levels; beyond it serialisers down the line give up

ONE_CALL_BYTES: Final = 64 * 1024  # a larger body's canonical form is made in short steps
MAX_INPUTS: Final = 2048  # of one embeddings request, as OpenAI has it

_INPUT_FIELD: Final[dict[Endpoint, str]] = {"completions": "prompt", "embeddings": "input"}


class RequestError(ValueError):
    """A client's fault found by a pure rule: HTTP ``status``, OpenAI ``code`` and ``param``."""

    def __init__(
        self, message: str, *, code: str, param: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """What a client wants from a model.

    ``model`` is the name as the client wrote it, or ``DEFAULT_MODEL``. ``body`` is the JSON body
    without ``kv_cache``; unknown fields and the order of fields are kept, so that a backend gets what
    the client sent. ``include_usage`` is true only for a stream that asked for it.
    ``size_bytes`` is that of the body as it came, 0 when that is not known.
    """

    endpoint: Endpoint
    model: str
    body: Mapping[str, Any]
    stream: bool
    include_usage: bool
    size_bytes: int = field(default=0, compare=False)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of a chat; empty for the other endpoints."""
        found: list[dict[str, Any]] = self.body["messages"] if self.endpoint == "chat" else []
        return found

    @property
    def stateful(self) -> bool:
        """Whether the answer depends on, or lives in, what the backend remembers and may change."""
        return self.endpoint == "responses" and (
            self.body.get("conversation") is not None
            or self.body.get("background") is True
            or not self.names_model
        )

    @property
    def names_model(self) -> bool:
        """Whether the client says a model: a response may leave it to a prompt that is kept."""
        return self.body.get("model") is not None


def endpoint_of(body: object) -> Endpoint:
    """Which endpoint a body without an address is for, by what it holds; ``chat`` when in doubt.

    A plain ``input`` is an embedding's when the model's name says so, else a response's.
    """
    if not isinstance(body, dict) or "messages" in body:
        return "chat"
    if isinstance(body.get("prompt"), str | list):
        return "completions"
    given = body.get("input")
    if isinstance(given, list) and given and not isinstance(given[0], dict):
        return "embeddings"
    if isinstance(given, str) and "embed" in str(body.get("model")).lower():
        return "embeddings"
    return "chat" if given is None else "responses"


def parse_call(endpoint: Endpoint, body: object) -> Call:
    """Check what the gateway itself relies on; all else is the backend's to judge.

    Raises RequestError (400) naming the field: ``missing_field``, ``invalid_type`` or
    ``invalid_value``.
    """
    if not isinstance(body, dict):
        raise _wrong_type("body", body, "a JSON object", param=None)
    model = body.get("model")
    if model is None and endpoint == "responses":
        model = DEFAULT_MODEL
    if model is None:
        raise _missing("model")
    if not isinstance(model, str):
        raise _wrong_type("model", model, "a string")
    if not model:
        raise RequestError("model is empty", code="invalid_value", param="model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _wrong_type("stream", stream, "a boolean")
    if endpoint == "chat":
        _check_messages(body.get("messages"))
    elif endpoint == "responses":
        _check_items(body.get("input"))
    else:
        name = _INPUT_FIELD[endpoint]
        most = MAX_INPUTS if endpoint == "embeddings" else None
        _check_input(name, body.get(name), most=most)
    return Call(
        endpoint=endpoint,
        model=model,
        body={name: value for name, value in body.items() if name != "kv_cache"},
        stream=bool(stream),
        include_usage=_include_usage(body.get("stream_options")) and bool(stream),
    )


def canonical(call: Call, *, context_aware: bool = True) -> bytes:
    """Canonical JSON of all that can change the answer: equal bytes mean the same request.

    ``[endpoint, body]`` with sorted keys and no white space; ``1`` and ``1.0`` are one number;
    a top-level null counts as absent, as OpenAI defines it. Not ``context_aware``: of a chat
    only the system and developer prompts and what begins at the last user message count, and
    a third element says so, because an answer found that way is no answer for a client who
    wants the whole conversation considered.

    Raises RequestError for JSON nested deeper than ``MAX_DEPTH``.
    """
    body = {
        name: _plain(value, 2)
        for name, value in call.body.items()
        if value is not None and name not in NOT_IN_THE_ANSWER
    }
    form: list[object] = [call.endpoint, body]
    if not context_aware and call.endpoint != "embeddings":  # an input stands in no context
        if call.endpoint == "chat":
            body["messages"] = _last_question(body["messages"])
        form.append("last question")
    if call.size_bytes > ONE_CALL_BYTES:
        return unmarked("".join(pieces(form, sort_keys=True))).encode("utf-8", "surrogatepass")
    return _written(form).encode("utf-8", "surrogatepass")


def verbatim(call: Call, sent: Mapping[str, Any]) -> bytes:
    """A body as a backend got it, to be compared with :func:`canonical`; the model is keyed apart.

    Equal bytes mean that the canonical form says all that the backend saw: no field beside it, no
    null, no number written otherwise.
    """
    body = {name: value for name, value in sent.items() if name != "model"}
    return unmarked(encode([call.endpoint, body])).encode("utf-8", "surrogatepass")


def canonical_before(call: Call, form: bytes) -> bytes | None:
    """The canonical form of the call whose answer this one goes on from, if it goes on from one.

    ``form`` is the call's own. It is that of the messages before the last answer among them; all else
    being equal, the text is cut out rather than made anew.
    """
    messages = call.messages
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers or not answers[-1]:
        return None
    since = "".join(f",{_written(_plain(message, 3))}" for message in messages[answers[-1] :])
    # Quotes in texts are escaped: what is found is no text, and of the fields it is the messages'.
    end = f"{since}]".encode("utf-8", "surrogatepass")
    place = form.rfind(end)
    return None if place < 0 else form[:place] + form[place + len(end) - 1 :]


_SAFE_INTEGERS: Final = 2.0**53


def _written(plain: Any) -> str:
    return unmarked(encode(plain))


def _plain(value: Any, depth: int) -> Any:
    """Copy JSON data with whole floats as integers, so that equal numbers are equal text."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        if not value.is_integer():
            return value
        return int(value) if abs(value) < _SAFE_INTEGERS else f"{MARK}{canonical_text(value)}"
    if kind is ExactNumber:
        return f"{MARK}{canonical_text(value)}"
    if depth >= MAX_DEPTH:
        raise RequestError(
            f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_value"
        )
    if kind is dict:
        return {name: _plain(item, depth + 1) for name, item in value.items()}
    return [_plain(item, depth + 1) for item in value]


def _last_question(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System and developer prompts, and everything from the last user message on.

    From, not only, the last user message: a tool's result after it is a new question.
    """
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    start = asked[-1] if asked else len(messages) - 1
    return [
        message
        for place, message in enumerate(messages)
        if place >= start or message["role"] in {"system", "developer"}
    ]


def _check_messages(messages: object) -> None:
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list):
        raise _wrong_type("messages", messages, "a list of objects")
    if not messages:
        raise RequestError("messages is empty", code="invalid_value", param="messages")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise _wrong_type(where, message, "an object")
        if "role" not in message:
            raise _missing(f"{where}.role")
        if not isinstance(message["role"], str):
            raise _wrong_type(f"{where}.role", message["role"], "a string")
        _check_content(f"{where}.content", message.get("content"))


def _check_content(where: str, content: object) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise _wrong_type(where, content, "a string, a list of parts or null")
    for place, part in enumerate(content):
        if not isinstance(part, dict):
            raise _wrong_type(f"{where}[{place}]", part, "an object")


def _check_items(items: object) -> None:
    """The input of a response: a text, or items; a stored prompt may stand in for it."""
    if items is None or isinstance(items, str):
        return
    if not isinstance(items, list):
        raise _wrong_type("input", items, "a string or a list of objects")
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            raise _wrong_type(f"input[{place}]", item, "an object")


def _check_input(name: str, value: object, *, most: int | None = None) -> None:
    """A string, or a non-empty list of strings, of token ids, or of lists of token ids."""
    if value is None:
        raise _missing(name)
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise _wrong_type(name, value, "a string or a list")
    if not value:
        raise RequestError(f"{name} is empty", code="invalid_value", param=name)
    kind = type(value[0])
    if most is not None and kind is not int and len(value) > most:
        raise RequestError(
            f"{name} has {len(value)} items; at most {most} are allowed",
            code="invalid_value",
            param=name,
        )
    if kind not in {str, int, list}:
        raise _wrong_type(f"{name}[0]", value[0], "a string, a token id or a list of token ids")
    if len(set(map(type, value))) == 1:
        return
    place = next(place for place, item in enumerate(value) if type(item) is not kind)
    raise _wrong_type(f"{name}[{place}]", value[place], "of the same type as the items before it")


def _include_usage(options: object) -> bool:
    """Read ``stream_options.include_usage``.

    Options beside ``stream: false`` are without effect, not an error: OpenAI's own SDK tests
    send them so.
    """
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _wrong_type("stream_options", options, "an object")
    wanted = options.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        raise _wrong_type("stream_options.include_usage", wanted, "a boolean")
    return bool(wanted)


def json_type(value: object) -> str:
    """The JSON name of a value's type, for messages: what a client wrote, not what Python holds."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float | ExactNumber):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _missing(name: str) -> RequestError:
    return RequestError(f"{name} is required", code="missing_field", param=name)


def _wrong_type(name: str, value: object, allowed: str, *, param: str | None = "") -> RequestError:
    return RequestError(
        f"{name} is {json_type(value)}; it must be {allowed}",
        code="invalid_type",
        param=name if param == "" else param,
    )
