"""Embeddings of several inputs: each input is a question of its own, with a key of its own.

So a list with one new text computes one text, whatever company a text is in. What a client sends
and what it gets stays whole: :func:`parts_of` takes a list apart, :func:`divided` shares out what
was counted for all of them together, and :func:`added` puts it together again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from policies.call import Call, canonical
from policies.keys import entry_key, fingerprint, public_key
from policies.plan import Plan
from policies.retention import Reason


@dataclass(frozen=True, slots=True)
class Part:
    """One input: the call that asks for it alone, its plan, and where in the list it stands."""

    call: Call
    plan: Plan
    places: tuple[int, ...]

    @property
    def weight(self) -> int:
        """Its share in what several inputs cost together: characters, or token ids."""
        return max(1, len(self.call.body["input"]))


def is_list(call: Call) -> bool:
    """Whether this asks for the embeddings of a list; token ids alone are one input."""
    if call.endpoint != "embeddings":
        return False
    given = call.body["input"]
    return isinstance(given, list) and type(given[0]) is not int


def for_list(plan: Plan) -> Plan:
    """The plan of a list. ``match: key`` cannot hold: one key names one answer, not many."""
    if plan.match != "key":
        return plan
    key = entry_key(plan.scope_key, plan.model, plan.cache_key, plan.fingerprint)
    why = Reason("match", "exact", "match key names one answer; a list of inputs has many")
    return replace(
        plan,
        match="exact",
        key=key,
        public_key=public_key(key),
        reasons=(*plan.reasons, why),
    )


def places_of(call: Call) -> list[tuple[Any, tuple[int, ...]]]:
    """Each different input of a list, in order, and the places where it stands."""
    places: dict[object, list[int]] = {}
    inputs: list[Any] = call.body["input"]
    for place, item in enumerate(inputs):
        places.setdefault(item if isinstance(item, str) else _frozen(item), []).append(place)
    return [(inputs[where[0]], tuple(where)) for where in places.values()]


def part_of(call: Call, plan: Plan, item: Any, places: tuple[int, ...]) -> Part:
    """One input of a list, as if it had been asked for alone and as a plain value."""
    alone = replace(call, body={**call.body, "input": item}, size_bytes=len(item))
    form = canonical(alone)
    print_ = fingerprint(form)
    key = entry_key(plan.scope_key, plan.model, plan.cache_key, print_)
    own = replace(plan, key=key, public_key=public_key(key), fingerprint=print_, canonical=form)
    return Part(alone, own, places)


def apportioned(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole shares as near to the weights as can be; they add up to it.

    ``weights`` are positive. What does not come out even goes to those who lose most by rounding.
    """
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_loss = sorted(
        range(len(weights)), key=lambda place: total * weights[place] % whole, reverse=True
    )
    for place in by_loss[: total - sum(shares)]:
        shares[place] += 1
    return shares


def divided(usage: Mapping[str, Any], weights: Sequence[int]) -> list[dict[str, Any]]:
    """A usage object shared out: its counts by weight, everything else to each."""
    shares: list[dict[str, Any]] = [{} for _ in weights]
    for name, value in usage.items():
        if _is_count(value):
            for share, count in zip(shares, apportioned(value, weights), strict=True):
                share[name] = count
        elif isinstance(value, Mapping):
            for share, inner in zip(shares, divided(value, weights), strict=True):
                share[name] = inner
        else:
            for share in shares:
                share[name] = value
    return shares


def added(usages: Iterable[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """Usage objects put together, each as many times as it is said to count."""
    whole: dict[str, Any] = {}
    for usage, times in usages:
        for name, value in usage.items():
            known = whole.get(name)
            if isinstance(value, Mapping):
                before = [(known, 1)] if isinstance(known, Mapping) else []
                whole[name] = added([*before, (value, times)])
            elif _is_count(value):
                whole[name] = value * times + (known if _is_count(known) else 0)
            else:
                whole.setdefault(name, value)
    return whole


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _frozen(value: Any) -> object:
    """JSON data as a dictionary's key; ``1``, ``1.0`` and ``true`` stay apart."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items())
    return type(value), value
