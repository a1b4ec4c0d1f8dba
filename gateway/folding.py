"""The plain answer that a stream's chunks make, put together as they come; no IO.

A server may send anything, so each member is merged by what it means:

======================  =========================================================================
member                  how its values become one
======================  =========================================================================
text (``TEXTS``)        joined, once, at the end
head, roles, names      the first that says something stands
other words, numbers    the last that says something stands: servers repeat them in each chunk
log probabilities       lists go on
other lists             go on, unless a chunk repeats the whole list
lists of pieces         told by id, then by index; a piece with neither goes on with the last
tool calls              the same; a repeated name without an id may begin another call
text and a list         a list, in which the text is a part of its own
objects                 member by member
======================  =========================================================================

"Says something": ``null``, ``""``, ``[]`` and ``{}`` never replace a value. The chunks are not
touched, since all readers share them. The work is linear in what comes.

Over 400 lines because objects and the lists in them are merged by each other.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from gateway import exact_json, responses
from gateway.responses import NOT_REPLAYED, EventLog
from policies.admission import is_end

Json = dict[str, Any]

TEXTS: Final = frozenset({
    "content", "text", "refusal", "arguments", "input", "transcript",
    "reasoning", "reasoning_content", "reasoning_text", "reasoning_summary", "reasoning_delta",
    "reasoningContent", "reasoningText", "thinking", "thinking_content", "thinking_text",
    "thinking_delta", "thought", "thoughts",
    "summary", "tool_plan", "partial_json", "output_text",
})  # fmt: skip
"""Members of a delta that come in pieces: of OpenAI, DeepSeek, vLLM, OpenRouter, Mistral, Cohere."""
HEAD: Final = frozenset({
    "id", "object", "created", "model", "system_fingerprint", "service_tier", "provider",
})  # fmt: skip
"""What every chunk of a stream says."""
BESIDE_TEXT: Final = frozenset({"logprobs", "token_ids"})
"""Members of a choice that belong to the text of their chunk."""

_ONCE: Final = frozenset({"role", "id", "type", "name", "object", "created", "model"})
_IN_PIECES: Final = frozenset({
    "content", "text", "reasoning", "reasoning_content", "thinking", "summary",
    "reasoning_details", "thinking_blocks", "executed_tools",
})  # fmt: skip
_APART: Final = frozenset({"choices", "usage"}) | NOT_REPLAYED
_GO_ON: Final = frozenset({"token_ids"})
_HALVES: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class _Rule(NamedTuple):
    """How the members of one object are merged.

    ``texts`` are joined; ``pieces``: a list may hold pieces; ``goes_on``: a list never repeats;
    ``counts``: a zero says nothing.
    """

    texts: frozenset[str] = frozenset()
    pieces: bool = False
    goes_on: bool = False
    counts: bool = False


_PLAIN: Final = _Rule()
_DELTA: Final = _Rule(texts=TEXTS, pieces=True)
_CHOICE_TEXT: Final = _Rule(texts=TEXTS)
_TOP: Final[Mapping[str, _Rule]] = {"usage": _Rule(counts=True)}
_CHOICE: Final[Mapping[str, _Rule]] = {"logprobs": _Rule(goes_on=True)}
_IN_DELTA: Final[Mapping[str, _Rule]] = {
    "audio": _Rule(texts=TEXTS | {"data"}, pieces=True),
    "executed_tools": _Rule(pieces=True),  # Groq's: each time as far as it has come
}


def index_of(piece: Mapping[str, Any]) -> int | None:
    """The index that a choice or a piece has, which some servers send as text; None without one."""
    index = piece.get("index")
    if type(index) is int and index >= 0:
        return index
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        return int(index)
    return None


def numbered(choices: Iterable[Json] | None) -> Iterator[tuple[int, Json]]:
    """The choices of one chunk with their index, which is their place where they have none."""
    for place, choice in enumerate(choices or ()):
        index = index_of(choice) if "index" in choice else None
        yield place if index is None else index, choice


class Folding:
    """An answer in the making: of the chunks of a stream, or one that came whole.

    Past ``limit_bytes`` it lets go of everything (:attr:`too_large`): such an answer is not kept.
    """

    __slots__ = ("_body", "_choices", "_limit", "_size", "_told", "log", "too_large")

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit = limit_bytes
        self.too_large = False
        self._size = 0  # never more than the answer will have
        self._body = _Object()
        self._choices: dict[int, _Choice] = {}
        self._told: Json | None = None
        self.log = EventLog()
        """The events of a stream of typed events."""

    def take(self, whole: Json) -> None:
        """Take an answer that came at once: it is the answer."""
        self._told = whole

    def add(self, data: Json) -> None:
        """Take a well-formed chunk."""
        if self.too_large:
            return
        if responses.is_event(data):
            self._told = responses.whole_in(data) or self._told
            self.log.add(data)
            if isinstance(delta := data.get("delta"), str):
                self._count(len(delta))
            return
        body = self._body
        for name, value in data.items():
            if name not in _APART and value != body.get(name, _APART):  # most say it again
                self.merge(body, name, value, _PLAIN)
        if (usage := data.get("usage")) is not None:
            self.merge(self._body, "usage", usage, _TOP["usage"])
        for index, piece in numbered(data.get("choices")):
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice(self, index)
            more = choice.add(piece)  # which counts, too
            self._size += more
        if self._limit is not None:
            self._count(0)

    def _count(self, more: int) -> None:
        self._size += more
        if self._limit is not None and self._size > self._limit:
            self.too_large = True
            self._body, self._choices, self.log = _Object(), {}, EventLog()

    def answer(self) -> Json:
        """The answer as far as it has come."""
        if self._told is not None:
            return self._told
        body: Json = _done(self._body)
        body["choices"] = [self._choices[index].folded() for index in sorted(self._choices)]
        is_chat = any("message" in choice for choice in body["choices"])  # whatever it is called
        if is_chat or body.get("object") == "chat.completion.chunk":
            body["object"] = "chat.completion"
        return body

    def merge(self, into: "_Object", name: str, value: Any, rule: _Rule) -> None:
        """Add ``value`` to what ``into`` has under ``name``."""
        have = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif have is None or _is_empty(have):
            into[name] = self._adopted(value)
        elif _is_empty(value) or (rule.counts and value == 0 and have):
            return
        elif name in rule.texts and isinstance(value, str | list | dict):
            into[name] = self._said(name, have, value, rule)
        elif isinstance(have, _Object) and isinstance(value, dict):
            self.merge_all(have, value, _IN_DELTA.get(name, rule) if rule.pieces else rule)
        elif isinstance(have, list | _Pieces) and isinstance(value, list):
            into[name] = self._listed(name, have, value, rule)
        elif rule.pieces and isinstance(have, _LISTED) and isinstance(value, list | dict):
            into[name] = self._said(name, have, value, rule)  # a list, where the other is none
        elif name not in _ONCE or not have:
            if isinstance(have, str | list | dict | _Pieces):
                self._size -= _size_of(_done(have))
            into[name] = self._adopted(value)

    def merge_all(self, into: "_Object", values: Mapping[str, Any], rule: _Rule) -> None:
        """Add each member of ``values``."""
        for name, value in values.items():
            self.merge(into, name, value, rule)

    def _said(self, name: str, have: Any, value: Any, rule: _Rule) -> Any:
        """Text that goes on, or parts; where both come, the text becomes a part."""
        if isinstance(value, str) and isinstance(have, str | _Text):
            if name == "arguments" and value == have and value.startswith("{"):
                return have  # a whole call, told again
            self._size += len(value)
            if isinstance(have, str):
                return _Text((have, value))
            have.append(value)
            return have
        if isinstance(value, dict) and isinstance(have, _Object):
            self.merge_all(have, value, rule)
            return have
        if not rule.pieces:
            return self._listed(name, _parts(have), _parts(value), rule)
        pieces = have if isinstance(have, _Pieces) else _Pieces(self, rule, _parts(have))
        pieces.add(_parts(value))
        return pieces

    def _listed(self, name: str, have: Any, value: list[Any], rule: _Rule) -> Any:
        if rule.pieces and not isinstance(have, _Pieces) and _come_in_pieces(name, value):
            have = _Pieces(self, _IN_DELTA.get(name, rule), have)
        if isinstance(have, _Pieces):
            have.add(value)
            return have
        if not rule.goes_on and name not in _GO_ON:
            if value[: len(have)] == have:
                return list(value)  # told again, or told further
            if have[: len(value)] == value:
                return have
        self._size += _size_of(value)
        have.extend(value)
        return have

    def _adopted(self, value: Any) -> Any:
        """A container of our own, to be merged into."""
        if isinstance(value, dict):
            return _Object((name, self._adopted(inner)) for name, inner in value.items())
        if isinstance(value, list):
            self._size += _size_of(value)
            return list(value)
        if isinstance(value, str):
            self._size += len(value)
        return value


class _Object(dict[str, Any]):
    """An object that is being merged; what else is in it may be shared and stays as it is."""

    __slots__ = ()


class _Text(list[str]):
    """Text in pieces, joined at the end."""

    __slots__ = ()


class _Pieces:
    """A list of objects that come in pieces.

    ``calls``: they are tool calls, which are in the order of their index, and lose it.
    """

    __slots__ = ("_by_id", "_by_index", "_calls", "_folding", "_items", "_numbers", "_rule")

    def __init__(
        self, folding: Folding, rule: _Rule, first: Sequence[Any] = (), *, calls: bool = False
    ) -> None:
        self._folding = folding
        self._rule = rule
        self._calls = calls
        self._items: list[Any] = []
        self._numbers: list[int] = []
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}
        self.add(first)

    def add(self, pieces: Sequence[Any]) -> None:
        """Take the list of one chunk."""
        before = len(self._items)
        for place, piece in enumerate(pieces):
            if not isinstance(piece, dict):
                self._begin(piece, None)
                continue
            index, name = index_of(piece), piece.get("id")
            named = name if isinstance(name, str) and name else None
            at = self._place_of(piece, named, index, goes_on=place == 0)
            if at is not None and at >= before and not self._is_again(at, index):
                at = None  # objects of one list are different ones
            if at is None:
                at = self._begin(_Object(), index)
            if named is not None:
                self._by_id[named] = at
            if index is not None:
                self._by_index[index] = at
            item = self._items[at]
            for member, value in piece.items():
                if member != "index" or (not self._calls and member not in item):
                    self._folding.merge(item, member, value, self._rule)

    def folded(self) -> list[Any]:
        """The list."""
        places: Iterable[int] = range(len(self._items))
        if self._calls:
            places = sorted(places, key=self._numbers.__getitem__)
        return [_done(self._items[place]) for place in places]

    def _begin(self, item: Any, index: int | None) -> int:
        at = len(self._items)
        number = index if index is not None else self._numbers[-1] + 1 if at else 0
        self._items.append(item)
        self._numbers.append(number)
        if self._calls:
            self._by_index[number] = at
        return at

    def _is_again(self, at: int, index: int | None) -> bool:
        return self._calls and index is not None and self._numbers[at] == index

    def _place_of(
        self, piece: Json, named: str | None, index: int | None, *, goes_on: bool
    ) -> int | None:
        """The object that this is a piece of, if it is there."""
        at: int | None = None
        if named is not None:
            at = self._by_id.get(named)
            if at is None and index is not None:
                at = self._by_index.get(index)
                if at is not None and _is_apart(self._items[at], piece):
                    return None  # the same index, but another id
        elif index is not None:
            at = self._by_index.get(index)
        elif goes_on and self._items and isinstance(self._items[-1], _Object):
            at = len(self._items) - 1
            if not self._calls and not self._may_go_on(self._items[at], piece):
                return None
        if at is None:
            return None
        item = self._items[at]
        if self._calls:
            return None if named is None and _is_another_call(item, piece) else at
        texts = self._rule.texts
        return None if texts and _contradicts(item, piece, texts) else at

    def _may_go_on(self, item: _Object, piece: Json) -> bool:
        """Whether ``piece``, which has no name, is more of the same text; a signature ends one."""
        says = any(value and name in self._rule.texts for name, value in piece.items())
        return not item.get("signature") if says else bool(piece.get("signature"))


_LISTED: Final = (list, _Pieces, _Object)


class _Choice:
    """One choice being folded."""

    __slots__ = ("_body", "_folding", "_told")

    def __init__(self, folding: Folding, index: int) -> None:
        self._folding = folding
        self._body = _Object(index=index, finish_reason=None)
        self._told: Json = {}

    def add(self, piece: Json) -> int:
        """Take a piece; how much text it added to that which was there."""
        size = 0
        for name, value in piece.items():
            if name == "delta":
                message = self._body.get("message")
                if message is None:
                    message = self._body["message"] = _Object()
                if value:
                    size += self._add_delta(message, value)
            elif name == "message":  # the whole so far, which some servers send beside the deltas
                self._told = value or self._told
            elif name == "finish_reason":
                have = self._body[name]
                if value and (not have or is_end(have)):  # a bad end stays one
                    self._body[name] = value
            elif name != "index" and (value is not None or name not in self._body):
                rule = _CHOICE.get(name, _CHOICE_TEXT if isinstance(value, str) else _PLAIN)
                self._folding.merge(self._body, name, value, rule)
        return size

    def _add_delta(self, message: _Object, delta: Json) -> int:
        size = 0
        for name, value in delta.items():
            have = message.get(name)
            if isinstance(have, _Text) and isinstance(value, str):  # most of what ever comes
                have.append(value)
                size += len(value)
            elif name == "tool_calls" and value:
                calls = message.get(name)
                if not isinstance(calls, _Pieces):
                    calls = message[name] = _Pieces(self._folding, _DELTA, calls=True)
                calls.add(value)
            else:
                self._folding.merge(message, name, value, _DELTA)
        return size

    def folded(self) -> Json:
        body: Json = _done(self._body)
        if self._told:
            body["message"] = self._told | {
                name: value
                for name, value in body.get("message", {}).items()
                if not _is_empty(value) or name not in self._told
            }
        return body


def _done(value: Any) -> Any:
    """A value as JSON: what is ours becomes what it stands for."""
    if isinstance(value, _Text):
        text = "".join(value)
        if not text.isascii() and _HALVES.search(text):  # of one character, each in its own chunk
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return text
    if isinstance(value, _Object):
        return {name: _done(inner) for name, inner in value.items()}
    return value.folded() if isinstance(value, _Pieces) else value


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | list | dict) and not value


def _parts(value: Any) -> list[Any]:
    """What a message says, as a list of parts."""
    if isinstance(value, str | _Text):
        return [{"type": "text", "text": "".join(value)}]
    return value if isinstance(value, list) else [_done(value)]


def _come_in_pieces(name: str, values: list[Any]) -> bool:
    return name in _IN_PIECES or any(
        isinstance(value, dict) and index_of(value) is not None for value in values
    )


def _contradicts(have: Mapping[str, Any], piece: Mapping[str, Any], texts: frozenset[str]) -> bool:
    """Whether merging ``piece`` would put a word of it in another's place."""
    for name, value in piece.items():
        there = have.get(name)
        if not there or not value or name in texts or name == "index":
            continue
        if isinstance(there, dict) and isinstance(value, dict):
            if _contradicts(there, value, texts):
                return True
        elif isinstance(value, str | list) and not isinstance(there, _Pieces) and there != value:
            return True
    return False


def _is_apart(item: Mapping[str, Any], piece: Json) -> bool:
    """Whether a piece with an id that is new is not of ``item``, though it has the index of it.

    Some servers make up an id for each piece; but a call that begins has a name.
    """
    if not item.get("id"):
        return False
    for kind in ("function", "custom"):
        there, more = item.get(kind), piece.get(kind)
        if isinstance(there, dict) and isinstance(more, dict):
            return not there.get("name") or bool(more.get("name"))
    return True


def _is_another_call(call: Mapping[str, Any], piece: Mapping[str, Any]) -> bool:
    """Whether a piece without an id begins a call: another name, or the same after whole arguments."""
    for kind in ("function", "custom"):
        there, more = call.get(kind), piece.get(kind)
        if not isinstance(there, dict) or not isinstance(more, dict):
            continue
        name, again = there.get("name"), more.get("name")
        if not name or not again:
            continue
        begins = more.get("arguments")
        return name != again or (
            isinstance(begins, str) and begins.startswith("{") and _is_whole(there.get("arguments"))
        )
    return False


def _is_whole(arguments: Any) -> bool:
    try:
        return isinstance(orjson.loads("".join(arguments)), dict)
    except (orjson.JSONDecodeError, TypeError):
        return False


def _size_of(value: Any) -> int:
    """At most what ``value`` takes as JSON."""
    try:
        return len(exact_json.dumps(value))
    except exact_json.JSONEncodeError:  # what JSON cannot hold is not stored, whatever its size
        return 0
