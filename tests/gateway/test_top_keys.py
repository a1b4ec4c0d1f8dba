"""The keys that saved most: bounded, per tenant, and the same over several processes."""

import random
from collections import Counter
from typing import Any

from gateway.request_log import Answered, Visit
from gateway.top_keys import SHOWN, TopKeys, read_keys, together
from policies.outcome import Outcome
from tests.kit.entries import asked


def hit(key: str, *, cost_s: float = 1.0, level: Any = "response", **wish: Any) -> Answered:
    call, plan = asked("?", {"enabled": True, **wish})
    outcome = Outcome(key=key, tier="hot", level=level, hit=True, tokens_saved=5)
    visit = Visit("r", "chat", 0.0, call=call, plan=plan, outcome=outcome, cost_s=cost_s)
    return Answered(visit, plan, outcome)


def test_hits_are_added_up_by_key_and_named_by_the_client() -> None:
    keys = TopKeys()
    keys.note([hit("a", cache_key="faq:1"), hit("b", cost_s=5.0), hit("a", cache_key="faq:1")])
    best = keys.best()
    assert [(one.key, one.hits, one.seconds_saved) for one in best] == [
        ("b", 1, 5.0),
        ("a", 2, 2.0),
    ]
    assert (best[1].cache_key, best[1].tokens_saved, best[1].model) == ("faq:1", 10, "m")
    assert repr(keys) == "<TopKeys 2>"


def test_what_was_computed_or_asked_by_nobody_saved_nothing() -> None:
    keys = TopKeys()
    keys.note([hit("a", level="none"), hit("b", level="prefix"), hit("c", preload=True)])
    assert keys.best() == []


def test_the_best_are_those_that_a_plain_look_at_all_finds() -> None:
    keys, chance = TopKeys(), random.Random(7)
    seconds: Counter[str] = Counter()
    for _ in range(3000):
        key, cost_s = str(int(chance.expovariate(0.01))), chance.randrange(1, 1000)
        seconds[key] += cost_s
        keys.note([hit(key, cost_s=cost_s)])
    plain = sorted(seconds.values(), reverse=True)[:SHOWN]
    assert [one.seconds_saved for one in keys.best()] == plain


def test_of_too_many_keys_those_that_saved_least_are_forgotten() -> None:
    keys = TopKeys(most=4 * SHOWN)
    keys.note([hit(str(number), cost_s=number) for number in range(4 * SHOWN + 1)])
    assert repr(keys) == f"<TopKeys {2 * SHOWN}>"
    keys.note([hit("0", cost_s=1.0), hit("79", cost_s=0.5)])
    best = keys.best()
    assert [one.seconds_saved for one in best[:3]] == [80.0, 79.5, 78.0]
    assert len(best) == SHOWN


def test_several_processes_say_one_list() -> None:
    one, other = TopKeys(), TopKeys()
    one.note([hit("a"), hit("b", cost_s=1.5)])
    other.note([hit("a")])
    told = [read_keys([said.as_dict() for said in keys.best()]) for keys in (one, other)]
    whole = together(told)
    assert [(said.key, said.hits, said.seconds_saved) for said in whole] == [
        ("a", 2, 2.0),
        ("b", 1, 1.5),
    ]
    assert told[0][1].hits == 1  # what was told is not changed
