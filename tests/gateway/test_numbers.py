"""Numbers of several processes, added up."""

import orjson

from gateway.numbers import Numbers, added_up
from gateway.store.base import Fill
from gateway.tally import Group, Statistics
from gateway.top_keys import KeySums
from policies.outcome import Outcome

GROUP = Group("chat", "none", 200, "hot", "m", "acme", "cold")


def counted(requests: int, *fills: Fill, flights: int = 0) -> Numbers:
    statistics = Statistics()
    for _ in range(requests):
        statistics.group(GROUP).add(
            Outcome(key="k", tier="hot"), seconds=0.1, seconds_saved=0.0, money=0.0
        )
    return Numbers(statistics, fills, flights)


def memory(entries: int, *, evictions: int = 0) -> Fill:
    return Fill("hot", "memory", entries, 10 * entries, 1000, evictions)


def disk(entries: int) -> Fill:
    return Fill("cold", "disk", entries, 10 * entries, 5000, 1)


def test_counts_and_flights_are_sums() -> None:
    whole = added_up([counted(2, flights=1), counted(3, flights=4)])
    assert whole.statistics.total.requests == 5
    assert whole.flights == 5


def test_memory_is_each_ones_own_and_what_is_shared_counts_once() -> None:
    whole = added_up([counted(0, memory(3), disk(7)), counted(0, memory(4, evictions=2), disk(9))])
    assert list(whole.fills) == [
        Fill("hot", "memory", 7, 70, 2000, 2),
        Fill("cold", "disk", 7, 70, 5000, 2),
    ]


def test_of_a_process_that_ended_stays_what_it_did_and_not_what_it_held() -> None:
    left = counted(2, memory(3, evictions=5), flights=9).left()
    whole = added_up([counted(1, memory(1, evictions=1)), left])
    assert whole.statistics.total.requests == 3
    assert list(whole.fills) == [Fill("hot", "memory", 1, 10, 1000, 6)]
    assert whole.flights == 0


def test_numbers_survive_being_sent() -> None:
    numbers = counted(2, memory(3), flights=1)
    received = Numbers.of(orjson.loads(orjson.dumps(numbers.as_dict())))
    assert received.as_dict() == numbers.as_dict()
    assert received.fills == [memory(3)]


def test_nothing_adds_up_to_nothing() -> None:
    whole = added_up([])
    assert (whole.statistics.total.requests, list(whole.fills), whole.flights) == (0, [], 0)


def test_the_best_keys_of_all_are_one_list() -> None:
    one, other = (KeySums("k", None, "hot", "m", "t", hits=hits) for hits in (1, 2))
    parts = [Numbers(Statistics(), keys=[one]), Numbers(Statistics(), keys=[other]).left()]
    told = [Numbers.of(orjson.loads(orjson.dumps(part.as_dict()))) for part in parts]
    assert [(key.key, key.hits) for key in added_up(told).keys] == [("k", 3)]
