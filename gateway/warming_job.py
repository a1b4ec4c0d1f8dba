"""A warm job as data: what was asked, how far it is, and both as JSON for records and clients."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Final, Literal

from gateway import exact_json
from gateway.warming_call import Warmed
from policies.keys import Principal
from policies.warming import Item

Status = Literal["running", "done", "cancelled"]
ENDED: Final = frozenset({"done", "cancelled"})
SHOWN_CHARACTERS: Final = 120

_MEMBERS: Final = attrgetter(*(member.name for member in fields(Warmed)))
Place = Literal["pending", "running"] | Warmed
"""Of one question: where it stands, or what became of it."""


@dataclass(slots=True)
class Job:
    """Questions of one principal; ``places`` has one for each item. Times are unix seconds."""

    id: str
    principal: Principal
    created_at: float
    items: Sequence[Item]
    status: Status = "running"
    finished_at: float | None = None
    places: list[Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.places:
            self.places = ["pending"] * len(self.items)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    def end(self, status: Literal["done", "cancelled"], now: float) -> None:
        """Nothing more will happen; what was begun is pending again, and the prompts are let go."""
        self.status, self.finished_at = status, now
        self.items = tuple(_without_text(item) for item in self.items)
        self.places = ["pending" if place == "running" else place for place in self.places]

    def counts(self) -> Mapping[str, int]:
        """How many questions stand where."""
        names: Counter[str] = Counter(
            place if isinstance(place, str) else place.status for place in self.places
        )
        every = ("done", "skipped", "failed", "running", "pending")
        return {"total": len(self.items), **{name: names[name] for name in every}}

    def summary(self) -> dict[str, Any]:
        """Without the single questions."""
        return {
            "object": "cache.warm",
            "id": self.id,
            "status": self.status,
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "counts": self.counts(),
        }

    def shown(self) -> dict[str, Any]:
        """All that a client may know."""
        pairs = zip(self.items, self.places, strict=True)
        return {**self.summary(), "items": [_shown(item, place) for item, place in pairs]}

    def wish(self) -> bytes:
        """What was asked, for the record: each base once, and no text once the job has ended."""
        bases: dict[int, tuple[int, Sequence[Any]]] = {}
        for item in () if self.ended else self.items:
            bases.setdefault(id(item.base), (len(bases), item.base))
        items = [
            [item.pattern, item.where, {}]
            if self.ended
            else [item.pattern, item.where, item.own, bases[id(item.base)][0]]
            for item in self.items
        ]
        return exact_json.dumps(
            {
                "id": self.id,
                "principal": asdict(self.principal),
                "created_at": self.created_at,
                "bases": [base for _, base in bases.values()],
                "items": items,
            }
        )

    def state(self) -> bytes:
        """How far it is, for the record."""
        return exact_json.dumps(
            {
                "status": self.status,
                "finished_at": self.finished_at,
                "places": [p if isinstance(p, str) else _MEMBERS(p) for p in self.places],
            }
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts().items() if count)
        return f"<Job {self.id} {self.status}: {counts}>"


def read_job(wish: bytes, state: bytes | None) -> Job | None:
    """What the records hold; None for what this version did not write."""
    try:
        said = exact_json.loads(wish)
        job = Job(
            id=said["id"],
            principal=Principal(**said["principal"]),
            created_at=said["created_at"],
            items=tuple(_read_items(said)),
        )
        if state is not None:
            _take_state(job, exact_json.loads(state))
    except (exact_json.JSONDecodeError, IndexError, KeyError, TypeError, ValueError):
        return None
    return job


def _read_items(said: Any) -> Iterator[Item]:
    """The questions; each had its whole request before 0.2, and no number of a base."""
    bases = said.get("bases", ())
    for pattern, where, own, *base in said["items"]:
        yield Item(pattern, where, own, bases[base[0]] if base else ())


def _take_state(job: Job, said: Any) -> None:
    places: list[Place] = [Warmed(*p) if isinstance(p, list) else p for p in said["places"]]
    if len(places) != len(job.items):
        raise ValueError("another job's state")
    job.status, job.finished_at, job.places = said["status"], said["finished_at"], places


def _shown(item: Item, place: Place) -> dict[str, Any]:
    known = {"pattern": item.pattern, "item": item.where, "question": _question(item)}
    if isinstance(place, str):
        return {**known, "status": place}
    error = {"code": place.code, "message": place.message} if place.code is not None else None
    return {
        **known,
        "status": place.status,
        "key": place.key,
        "tokens": place.tokens,
        "seconds": round(place.seconds, 3),
        "error": error,
    }


def _question(item: Item) -> str | None:
    """The beginning of its last message, for people; None where the text is gone."""
    messages = item.own.get("messages")
    content = messages[-1].get("content") if messages else None
    return content[:SHOWN_CHARACTERS] if isinstance(content, str) else None


def _without_text(item: Item) -> Item:
    """What is shown of a question, and no more."""
    shown = _question(item)
    own = {"messages": [{"content": shown}]} if shown is not None else {}
    return replace(item, own=own, base=())
