"""The comparison of orders for stored answers compares what it says."""

from loadtest.bench_answers import Asked, by_last_use, in_order_of_worth, measured, traffic


def asked(text: str) -> list[Asked]:
    """Letters as keys, each of one byte and a second; an upper case one goes on from the one before."""
    found: list[Asked] = []
    for at, letter in enumerate(text):
        before = found[-1].key if letter.isupper() else None
        found.append(Asked(float(at), letter.lower(), before, 1.0, 1.0))
    return found


def test_each_order_keeps_what_it_says() -> None:
    assert by_last_use(asked("abacb"), 2) == [False, False, True, False, False]
    plain = in_order_of_worth(asked("aabcb"), 2, supersedes=True)
    assert plain == [False, True, False, False, False]
    talk = asked("xaaBcx")
    assert in_order_of_worth(talk, 3, supersedes=True)[-1]
    assert in_order_of_worth(talk, 3, supersedes=False)[-1] is False


def test_traffic_is_the_same_for_the_same_seed_and_goes_on_turn_by_turn() -> None:
    one = list(traffic(3000, 7, repeats=0.1))
    assert one == list(traffic(3000, 7, repeats=0.1))
    assert one != list(traffic(3000, 8, repeats=0.1))
    turns = [request for request in one if request.before is not None]
    seen = {request.key for request in one}
    assert turns
    assert all(request.before in seen for request in turns)


def test_no_order_beats_foresight_and_more_room_finds_more() -> None:
    rows = measured(list(traffic(3000, 7, repeats=0.1)), (50_000, 500_000))
    hit = {(row.order, row.max_bytes): row.hit_percent for row in rows}
    for order in ("LRU", "by worth", "kvgate"):
        assert hit[order, 50_000] <= hit[order, 500_000]
        assert hit[order, 50_000] <= hit["foresight", 50_000] + 0.5
    assert hit["kvgate", 500_000] > hit["by worth", 500_000]
