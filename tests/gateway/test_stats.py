"""The body of ``/v1/cache/stats``, made in one pass, says what the slow way says."""

from gateway.numbers import Numbers
from gateway.savings import savings
from gateway.stats import stats_of
from gateway.store.base import Fill
from gateway.tally import Statistics, Tally
from policies.outcome import Outcome

HIT = Outcome(key="k", tier="hot", level="response", hit=True, tokens_saved=7, stale=True)
PREFIX = Outcome(key="k", tier="warm", level="prefix", hit=True, tokens_saved=4, hit_tokens=4)
MISS = Outcome(key="k", tier="hot", miss_tokens=5, store_error=True, collapsed=True)


def counted() -> Statistics:
    statistics = Statistics()
    for tenant in ("t", "u"):
        for model in ("m", "n"):
            for outcome, reason in ((HIT, None), (PREFIX, "fingerprint"), (MISS, "cold")):
                tier = None if reason == "cold" and tenant == "u" else outcome.tier
                names = ("chat", outcome.level, 200, tier, model, tenant, reason)
                for _ in range(3):
                    statistics.group(names).add(
                        outcome, seconds=0.125, seconds_saved=1.5, money=0.25
                    )
    statistics.refused("chat", 404)
    statistics.store_failures += 2
    return statistics


def test_the_views_are_the_sums_by_name() -> None:
    statistics = counted()
    views = statistics.views()
    assert views.levels == statistics.by("level")
    assert views.total == statistics.total
    for seen, slow in (
        (views.tiers, statistics.by("tier")),
        (views.models, statistics.by("model")),
        (views.tenants, statistics.by("tenant")),
        (views.reasons, statistics.by("reason")),
    ):
        assert {key: one.as_dict() for key, one in seen.items()} == {
            key: one.as_dict() for key, one in slow.items()
        }


def test_it_says_the_same_as_the_sums_one_by_one() -> None:
    statistics = counted()
    fill = Fill("hot", "memory", 3, 300, 1000, 2)
    said = stats_of(Numbers(statistics, [fill]), statistics.views())
    whole = statistics.total
    assert {name: said[name] for name in whole.as_dict()} == whole.as_dict()
    assert said["savings"] == savings(statistics)
    assert said["miss_reasons"] == {"cold": 12, "fingerprint": 12}
    assert said["tiers"] == {
        "hot": {
            **statistics.by("tier")["hot"].as_dict(),
            "store": "memory", "entries": 3, "size_bytes": 300, "max_bytes": 1000, "evictions": 2,
        }
    }  # fmt: skip
    assert (said["collapsed"], said["stale"], said["errors"]) == (12, 12, 1)
    assert said["store_errors"] == statistics.store_errors == 14


def test_a_gateway_that_was_asked_nothing_says_so() -> None:
    statistics = Statistics()
    said = stats_of(Numbers(statistics), statistics.views())
    assert {name: said[name] for name in Tally().as_dict()} == Tally().as_dict()
    assert said["levels"] == said["tiers"] == said["miss_reasons"] == {}
