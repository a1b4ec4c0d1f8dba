"""Several backends that serve the same model, as one: each call goes to the member that suits it.

The choice is made when a flight starts, so nothing of it is paid by what the store answers. By
``prefix`` a prompt goes to the member that knows its beginning, see :mod:`policies.affinity`; there
and with ``least_busy`` the calls in the air count as well, so that a hot beginning spreads though it
costs nobody much. Chains begin with the model and the plan's salt: tenants do not meet in them.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, Literal

from gateway import exact_json
from gateway.backends.base import Backend, Forwarded, KnownPrefix, LooksUp, Prefills
from gateway.chunks import Opening, Piece
from gateway.errors import BackendFault
from policies.affinity import CHUNK_TOKENS, Affinity, Chain, chain_of
from policies.call import Call
from policies.eviction import Priority
from policies.outcome import Failed
from policies.plan import Plan

Strategy = Literal["prefix", "least_busy", "round_robin"]
AIR_BOUND: Final = 1.25
"""How many more calls than the mean a member may have in the air and still be chosen by prefix."""
AIR_SLACK: Final = 2
MOST_KEYS: Final = 10_000
"""Cache keys whose last member is remembered."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of a prompt's part that are looked at: what is longer is told apart by its beginning."""


def _always(_: str) -> bool:
    return True


def _nobody(_: "Sent") -> None:
    return


@dataclass(frozen=True, slots=True)
class Sent:
    """A prompt went to the member of this name; ``key`` stands for its cache key, if it has one."""

    name: str
    chain: Chain
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member as one call may use it: that it does so counts from the moment it runs."""

    group: "Group"
    member: Backend
    chain: Chain
    key: bytes | None

    @property
    def name(self) -> str:
        """The member's."""
        return self.member.name

    def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """See :meth:`gateway.backends.base.Computes.run`; the opening names the member."""
        return self.group.through(self, call, plan)


class Group:
    """See the module's docstring. ``kv_tokens``: what each member's KV cache holds, by name.

    ``model`` is the one whose KV is computed ahead, where they serve several.
    ``is_open``: whether a member may be asked now; when none may, the order is as if all might.
    """

    def __init__(
        self,
        members: Sequence[Backend],
        kv_tokens: Mapping[str, int],
        *,
        model: str = "",
        strategy: Strategy = "prefix",
        is_open: Callable[[str], bool] = _always,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.name = "+".join(self.members)
        self._names = tuple(self.members)
        self._model = model
        self._strategy = strategy
        self._is_open = is_open
        self._affinity = Affinity({name: _chunks(kv_tokens[name]) for name in self._names})
        self._last_of: OrderedDict[bytes, str] = OrderedDict()
        self._in_the_air = dict.fromkeys(self._names, 0)
        self._turn = 0
        self.told: Callable[[Sent], None] = _nobody
        """Told of each prompt that goes out from here."""

    def __repr__(self) -> str:
        air = " ".join(f"{name}={count}" for name, count in self._in_the_air.items())
        return f"<Group by {self._strategy}: {air}>"

    def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """See :meth:`gateway.backends.base.Computes.run`: the best candidate alone is asked."""
        return self.candidates(call, plan)[0].run(call, plan)

    def candidates(self, call: Call, plan: Plan) -> list[Candidate]:
        """All members that are open, the best first; never empty."""
        found = self._candidates(call, plan)
        self._turn += 1
        return found

    def foreseen(self, call: Call, plan: Plan) -> list[str]:
        """The names of :meth:`candidates`, were they asked for now."""
        return [one.name for one in self._candidates(call, plan)]

    def _candidates(self, call: Call, plan: Plan) -> list[Candidate]:
        chain: Chain = ()
        key = None
        if self._strategy == "prefix" and plan.reuse_prefix and call.endpoint != "embeddings":
            chain = _chain(_root(plan.model, plan.salt), _prompt(call))
            if plan.affinity is not None:
                key = _digest(_root(plan.model, plan.salt), plan.affinity)
        favourite = self._last_of.get(key) if key is not None else None
        order = self._order(chain, favourite)
        return [Candidate(self, self.members[name], chain, key) for name in order]

    async def through(
        self, candidate: Candidate, call: Call, plan: Plan
    ) -> AsyncGenerator[Piece, None]:
        """What the candidate's member computes, counted as its call for as long as it takes."""
        name = candidate.name
        self._note(Sent(name, candidate.chain, candidate.key))
        self._in_the_air[name] += 1
        try:
            async with aclosing(candidate.member.run(call, plan)) as pieces:
                async for piece in pieces:
                    match piece:
                        case Opening():
                            yield replace(piece, backend=name)
                        case Failed() if len(self.members) > 1:
                            yield replace(piece, beyond_key=True)  # the next call may go elsewhere
                        case _:
                            yield piece
        finally:
            self._in_the_air[name] -= 1

    def _note(self, sent: Sent) -> None:
        self.hear(sent)
        self.told(sent)

    def hear(self, sent: Sent) -> None:
        """Remember what went where, whoever sent it there."""
        self._affinity.sent(sent.name, sent.chain)
        if sent.key is not None:
            self._last_of[sent.key] = sent.name
            self._last_of.move_to_end(sent.key)
            if len(self._last_of) > MOST_KEYS:
                self._last_of.popitem(last=False)

    def _order(self, chain: Chain, favourite: str | None = None) -> list[str]:
        """The names of the members: those that are open, the best first; then the others."""
        turn = self._turn % len(self._names)
        in_turn = self._names[turn:] + self._names[:turn]
        among = [name for name in in_turn if self._is_open(name)] or list(in_turn)
        last = [name for name in in_turn if name not in among]  # better than nobody
        return self._ranked(among, chain, favourite) + last

    def _ranked(self, among: list[str], chain: Chain, favourite: str | None) -> list[str]:
        if self._strategy == "round_robin":
            return among
        air = self._in_the_air
        among.sort(key=air.__getitem__)  # of equals, whose turn it is
        if not chain and favourite is None:
            return among
        mean = (sum(air[name] for name in among) + 1) / len(among)
        ranked = [one.name for one in self._affinity.rank(chain, among, favourite=favourite)]
        return sorted(ranked, key=lambda name: air[name] + 1 > AIR_BOUND * mean + AIR_SLACK)

    def forget(self, name: str) -> None:
        """The member has lost its KV cache: it was restarted."""
        if name in self.members:
            self._affinity.forget(name)

    def resize(self, name: str, kv_tokens: int) -> None:
        """The member's KV cache holds so many tokens, as it says itself."""
        if name in self.members:
            self._affinity.resize(name, _chunks(kv_tokens))

    async def prefill_kv(
        self, messages: Sequence[Mapping[str, Any]], *, salt: str, priority: Priority, ttl_s: float
    ) -> int:
        """See :meth:`gateway.backends.base.Prefills.prefill_kv`: at one member."""
        chain = _chain(_root(self._model, salt), [_text(list(messages))])
        name = self._order(chain)[0]
        self._turn += 1
        member = self.members[name]
        if not isinstance(member, Prefills):
            return 0
        self._note(Sent(name, chain))
        return await member.prefill_kv(messages, salt=salt, priority=priority, ttl_s=ttl_s)

    async def lookup_kv(self, call: Call, plan: Plan) -> KnownPrefix | None:
        """See :meth:`gateway.backends.base.LooksUp.lookup_kv`: at the member that would be asked."""
        member = self.members[self.foreseen(call, plan)[0]]
        return await member.lookup_kv(call, plan) if isinstance(member, LooksUp) else None

    async def models(self) -> list[dict[str, Any]]:
        """See :meth:`gateway.backends.base.Backend.models`: they serve the same."""
        return await self._first().models()

    async def forward(self, method: str, path_qs: str, body: bytes) -> Forwarded:
        """See :meth:`gateway.backends.base.Backend.forward`: what is no model call has one place."""
        return await self._first().forward(method, path_qs, body)

    async def invalidate_kv(self, salt: str | None) -> int:
        """See :meth:`gateway.backends.base.Backend.invalidate_kv`: at all members."""
        tokens = 0
        for member in self.members.values():
            with suppress(BackendFault):  # one that is down holds no KV that could be used
                tokens += await member.invalidate_kv(salt)
        return tokens

    async def kv_stats(self) -> dict[str, Any] | None:
        """See :meth:`gateway.backends.base.Backend.kv_stats`: each member speaks for itself."""
        return None

    def _first(self) -> Backend:
        """The operator's first that is open."""
        names = [name for name in self._names if self._is_open(name)] or self._names
        return self.members[names[0]]


def _chunks(kv_tokens: int) -> int:
    return max(1, kv_tokens // CHUNK_TOKENS)


def _root(model: str, salt: str) -> str:
    return f"{len(model)}:{model}{salt}"


def _prompt(call: Call) -> Iterable[bytes]:
    """What the prompt is made of, in the order of the usual templates: tools stand first."""
    tools = call.body.get("tools") or call.body.get("functions")
    if tools:
        yield _text(tools)
    # Each part in one piece: a list of token ids one by one would hold up the event loop.
    if call.endpoint == "chat":
        yield _text(call.messages)
    else:
        for name in ("instructions", "prompt", "input"):
            yield _text(call.body.get(name))


def _text(part: object) -> bytes:
    return exact_json.dumps(part, sort_keys=True)


def _chain(root: str, pieces: Iterable[bytes]) -> Chain:
    try:
        return chain_of(root, (piece[:MOST_BYTES] for piece in pieces))
    except exact_json.JSONEncodeError:  # nested too deep: the member will say so
        return ()


def _digest(root: str, key: str) -> bytes:
    digest = blake2b(root.encode(), digest_size=16)
    digest.update(b"\0" + key.encode("utf-8", "surrogatepass"))
    return digest.digest()
