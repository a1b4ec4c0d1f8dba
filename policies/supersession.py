"""Which stored answer a newer one makes useless: that to the turn before, once a conversation went on."""

from typing import Final

from policies.call import Call, canonical_before
from policies.keys import entry_key, fingerprint
from policies.plan import Plan

MOST_BYTES: Final = 256 * 1024
"""Of a request that is looked at: it is hashed once more while others wait."""


def superseded(call: Call, plan: Plan) -> bytes | None:
    """The key of the answer that ``call`` goes on from, if it was asked for as ``call`` is.

    Nobody says that the turn before will not be asked for again; but who has gone on seldom does. Where
    a key alone names an answer, the newer one takes the older one's place anyhow.
    """
    if not plan.enabled or plan.match != "exact" or len(plan.canonical) > MOST_BYTES:
        return None
    form = canonical_before(call, plan.canonical)
    if form is None:
        return None
    name = None if plan.cache_key == plan.scope.context else plan.cache_key
    return entry_key(plan.scope_key, plan.model, name, fingerprint(form))
