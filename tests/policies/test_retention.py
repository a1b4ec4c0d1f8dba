"""policies.retention: of several rules the first that names a thing wins it.

Which rules there are, and in which order they speak, is told through plans: `test_plan`.
"""

from policies.retention import Bid, Reason, Retention, agreed


def test_the_first_bid_that_names_a_thing_wins_it_and_says_why() -> None:
    bids = [
        Bid("said so", None, 7.0, None),
        Bid("a tier", "hot", 300.0, None),
        Bid("a profile", "cold", 3600.0, "low"),
        Bid("default", "warm", 1800.0, "medium"),
    ]
    reasons = [Reason("enabled", "true", "before")]
    assert agreed(bids, reasons) == Retention("hot", 7.0, "low")
    assert reasons[1:] == [
        Reason("ttl_s", "7", "said so"),
        Reason("tier", "hot", "a tier"),
        Reason("priority", "low", "a profile"),
    ]
