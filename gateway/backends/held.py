"""Which backend holds which response, conversation or stored completion: no other can go on from it.

A server keeps what it made under an id. A call that names such an id goes to the backend that holds
it. The gateway remembers this from the answers that it passed on, and workers tell each other. After a
restart nothing is remembered: then the backends are asked in turn, until one knows the id.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gateway.chunks import Chunk, Piece, Whole
from policies.call import Call
from policies.outcome import Failed

MOST: Final = 10_000
"""Ids that are remembered."""
LONGEST: Final = 256
_UNKNOWN: Final = "not found"
_NAMING: Final = ("previous_response_id", "conversation")


class Held:
    """See the module's docstring. Belongs to one process."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, str] = OrderedDict()
        self.told: Callable[[Sequence[str], str], None] = lambda *_: None
        """Told of ids and the backend that holds them, when this process has seen it."""

    def __repr__(self) -> str:
        return f"<Held {len(self._by_id)} ids>"

    def note(self, ids: Sequence[str], name: str) -> None:
        """The backend of this name holds these."""
        fresh = [one for one in ids if self._by_id.get(one) != name and len(one) <= LONGEST]
        self.hear(ids, name)
        if fresh:
            self.told(fresh, name)

    def hear(self, ids: Sequence[str], name: str) -> None:
        """Remember it, from this process or from another."""
        for one in ids:
            if len(one) <= LONGEST:
                self._by_id[one] = name
                self._by_id.move_to_end(one)
        while len(self._by_id) > MOST:
            self._by_id.popitem(last=False)

    def holder(self, ids: Sequence[str]) -> str | None:
        """The backend that holds the first of these that is known."""
        return next((self._by_id[one] for one in ids if one in self._by_id), None)


def named_in(call: Call) -> list[str]:
    """The ids of what the call goes on from: its answer can be computed only where that is."""
    if call.endpoint != "responses":
        return []
    return _ids(call.body, _NAMING)


def is_kept(call: Call) -> bool:
    """Whether the backend may keep the answer under its id."""
    if call.endpoint == "responses":
        return call.body.get("store") is not False
    return call.endpoint == "chat" and call.body.get("store") is True


def ids_in(piece: Piece) -> list[str]:
    """The ids under which the backend keeps the answer, if the piece says them."""
    match piece:
        case Whole(body):
            data = body
        case Chunk(event):
            inner = event.get("response")
            data = inner if isinstance(inner, dict) else event
        case _:
            return []
    return _ids(data, ("id", "conversation"))


def does_not_know(failure: Failed) -> bool:
    """Whether the backend says that it has no such thing, which another may have."""
    if failure.fault != "client" or failure.status not in {400, 404}:
        return False
    code, message = failure.code.lower(), failure.message.lower()
    return (
        failure.status == 404
        or failure.param in _NAMING
        or _UNKNOWN in f"{code} {message}".replace("_", " ")
    )


def _ids(data: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        value = data.get(name)
        value = value.get("id") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            found.append(value)
    return found
