"""What caching saved, kind by kind, and what it took: the ``savings`` of ``/v1/cache/stats``.

Only what is known is claimed:

- *response*: a stored answer saves the seconds that its original took (measured), its tokens, and
  their price, all of the prompt taken as computed;
- *collapsed*: who read along with another's call saved tokens and their price, and waited as long;
- *prefix*: reused prompt tokens save the difference between the two prompt prices. How long they
  would have taken no backend says, so no seconds are claimed;
- *spent*: warming and renewals, whose seconds, tokens and price are subtracted in *net*.
"""

from typing import Any, Final

from gateway.tally import Spent, Statistics, Tally, Views
from policies.outcome import Errand

NO_PREFIX_SECONDS: Final = (
    "not claimed: no backend says how long the reused tokens would have taken"
)
NO_COLLAPSED_SECONDS: Final = "not claimed: who reads along waits as long as the first"
ERRANDS: Final[tuple[Errand, ...]] = ("warming", "revalidation")


def savings(statistics: Statistics) -> dict[str, Any]:
    """JSON. Seconds are a backend's, money is in the currency of the configured prices."""
    return savings_of(statistics.views(), statistics)


def savings_of(views: Views, statistics: Statistics) -> dict[str, Any]:
    """The same from sums that are there already."""
    levels, whole = views.levels, views.total
    response = Tally()
    for level in ("response", "semantic"):
        response.merge(levels.get(level, Tally()))
    prefix = levels.get("prefix", Tally())
    prefix_tokens = whole.tokens_saved - response.tokens_saved - whole.collapsed_tokens
    prefix_money = whole.money_saved - response.money_saved - whole.collapsed_money
    spent = {errand: Spent() for errand in ERRANDS}
    for purpose, one in statistics.purposes():
        spent[purpose.errand].merge(one)
    return {
        "response": {
            "calls": response.requests,
            "tokens": response.tokens_saved,
            "seconds": round(response.seconds_saved, 6),
            "money": round(response.money_saved, 9),
        },
        "collapsed": {
            "calls": whole.collapsed,
            "tokens": whole.collapsed_tokens,
            "seconds": None,
            "seconds_note": NO_COLLAPSED_SECONDS,
            "money": round(whole.collapsed_money, 9),
        },
        "prefix": {
            "calls": prefix.requests - prefix.collapsed,
            "tokens": prefix_tokens,
            "seconds": None,
            "seconds_note": NO_PREFIX_SECONDS,
            "money": round(prefix_money, 9),
        },
        "spent": {
            errand: {
                "calls": one.calls,
                "tokens": one.tokens,
                "seconds": round(one.seconds, 6),
                "money": round(one.money, 9),
            }
            for errand, one in spent.items()
        },
        "net": {
            "tokens": whole.tokens_saved - sum(one.tokens for one in spent.values()),
            "seconds": round(whole.seconds_saved - sum(one.seconds for one in spent.values()), 6),
            "money": round(whole.money_saved - sum(one.money for one in spent.values()), 9),
        },
    }
