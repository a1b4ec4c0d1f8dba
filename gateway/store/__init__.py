"""Where answers are kept: one contract (``base``), the tiers over it, the memory store.

A store keeps and finds; it does not judge freshness (``policies.freshness``), and what is
kept how long is decided before it is asked (``policies.admission``). Read ``base``, then
``memory``, then ``tiers``.
"""
