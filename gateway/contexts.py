"""Shared contexts on the way of a call, and what becomes of their KV.

Rights are judged before the text is fetched: who is refused has waited for one small record and
nothing else (:mod:`gateway.context_records` says what is held how).

A mere ID (``X-Cache-ID`` alone) is looked up only when a context of that name is known here: the
names are told to other processes when one is made, and read anew every ``NAMES_S``. A name that
is not known yet costs the sharing and nothing else, for such a call brings its whole prompt along.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import cachetools

from gateway.backends.base import Prefills
from gateway.context_records import ContextRecords
from gateway.errors import GatewayError
from gateway.flights import Tasks
from gateway.router import Router
from gateway.store.base import Selector, StoreError
from gateway.store.sharing import News
from policies.call import DEFAULT_MODEL, Call
from policies.contexts import (
    Base,
    ContextWish,
    Terms,
    Wanted,
    base_of,
    check_size,
    fitted,
    forbidden,
    may_use,
    not_found,
    scope_of,
    wanted,
)
from policies.directive import Directive
from policies.keys import Principal, kv_salt
from policies.plan import Plan, believed_user, decide
from policies.rules import Rules

NAMES_S: Final = 5.0
SWEEP_S: Final = 30.0
_TOPIC: Final = "contexts"
_DOWN: Final = "the store of shared contexts does not answer"
_NOTHING_STORED: Final = "there is no such context, and nothing is to be stored"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A call as it is to be computed, and what :func:`policies.plan.decide` is to know."""

    call: Call
    terms: Terms | None = None
    base: Base | None = None
    without: str | None = None

    def plan(self, directive: Directive, principal: Principal, rules: Rules, model: str) -> Plan:
        """The plan of a client's call and of warming's alike. Raises: RequestError."""
        return decide(
            self.call,
            directive,
            principal,
            rules,
            model=model,
            context=self.terms,
            base=self.base,
            without=self.without,
        )


class Contexts:
    """The shared contexts of all tenants. ``now`` is unix time.

    ``names_answers`` says whether a name is that of stored answers of a tenant outside contexts.
    """

    def __init__(
        self,
        held: ContextRecords,
        *,
        news: News | None,
        router: Router,
        rules: Rules,
        tasks: Tasks,
        now: Callable[[], float],
        names_answers: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        self.held = held
        self._names_answers = names_answers
        self._news = news
        self._router = router
        self._rules = rules
        self._tasks = tasks
        self._now = now
        self._names: set[tuple[str, str]] = set()
        self._names_changed = 0
        self._names_at: float | None = None
        # Names by which calls came that were under no context.
        self._plain: cachetools.LRUCache[tuple[str, str], bool] = cachetools.LRUCache(4096)
        if news is not None:
            news.listen(_TOPIC, self._heard)

    def __repr__(self) -> str:
        return f"<Contexts {len(self._names)} known>"

    # ---- on a call

    def knows(self, tenant: str, id_: str) -> bool:
        """Whether there is a context of this name, as far as is known here without asking."""
        if self._names_at is None or self._now() - self._names_at >= NAMES_S:
            self._names_at = self._now()
            self._tasks.start(self.load(), name="context names")
        return (tenant, id_) in self._names

    def _may_be_one(self, asked: Wanted, directive: Directive, tenant: str) -> bool:
        """Whether to look for the context: always, where its name alone would name an answer."""
        match = directive.match or self._rules.match_default
        return asked.how != "key" or match == "key" or self.knows(tenant, asked.id)

    async def fit(self, call: Call, directive: Directive, principal: Principal) -> Fitted:
        """The call under the context it asks for, if it asks for one; rights first, then text.

        Raises:
            RequestError: 403 ``context_forbidden`` or ``user_mismatch``, 404
                ``context_not_found``, 400 when the call does not start with the base prompt.
            StoreError: the base prompt is to be put in front and cannot be read.
        """
        asked = wanted(directive, call.endpoint)
        if asked is None:
            return Fitted(call)
        if not self._may_be_one(asked, directive, principal.tenant):
            self._plain[principal.tenant, asked.id] = True
            return Fitted(call)
        user = believed_user(directive, principal)
        try:
            terms = await self.held.find(principal.tenant, asked.id)
            if terms is not None and asked.how == "key" and not terms.by_id:
                return Fitted(call)
            if terms is not None:
                under = await self._under(call, terms, user, stands_in=asked.how == "named")
                if under is not None:
                    return under
            return await self._first_use(call, directive, principal.tenant, user, asked)
        except StoreError:
            if asked.how == "named":
                raise
            return Fitted(call, without=_DOWN)

    async def foresee(self, call: Call, directive: Directive, principal: Principal) -> Fitted:
        """What :meth:`fit` would say, and raise: no context is made, no use is counted.

        The edition of a context that the call would make is not known yet: its terms have none.
        """
        asked = wanted(directive, call.endpoint)
        if asked is None or not self._may_be_one(asked, directive, principal.tenant):
            return Fitted(call)
        user = believed_user(directive, principal)
        try:
            terms = await self.held.find(principal.tenant, asked.id)
            if terms is not None and asked.how == "key" and not terms.by_id:
                return Fitted(call)
            if terms is not None:
                stands_in = asked.how == "named"
                under = await self._fitted(call, terms, user, stands_in=stands_in)
                if under is not None:
                    return under
        except StoreError:
            if asked.how == "named":
                raise
            return Fitted(call, without=_DOWN)
        if asked.how == "key":
            return Fitted(call)
        wish = self._first_wish(call, directive, asked)
        if wish is None:
            return Fitted(call, without=_NOTHING_STORED)
        terms = self._not_yet_made(principal.tenant, asked.id, wish, user)
        return Fitted(call, terms, wish.base)

    async def _under(
        self, call: Call, terms: Terms, user: str | None, *, stands_in: bool
    ) -> Fitted | None:
        """The call under these terms, counted as a use; None when they were revoked meanwhile."""
        fit = await self._fitted(call, terms, user, stands_in=stands_in)
        if fit is not None:
            self._note_use(terms, user)
        return fit

    async def _fitted(
        self, call: Call, terms: Terms, user: str | None, *, stands_in: bool
    ) -> Fitted | None:
        """The call under these terms; None when they were revoked since they were read."""
        if not may_use(terms, user):
            raise forbidden()
        base = await self.held.base(terms)
        if base is None:
            return None
        return Fitted(fitted(call, base, stands_in=stands_in), terms, base)

    async def _first_use(
        self, call: Call, directive: Directive, tenant: str, user: str | None, asked: Wanted
    ) -> Fitted:
        if asked.how == "key":
            self._plain[tenant, asked.id] = True
            self._forget_name(tenant, asked.id)
            return Fitted(call)
        wish = self._first_wish(call, directive, asked)
        if wish is None:
            return Fitted(call, without=_NOTHING_STORED)
        wish = replace(wish, by_id=await self._is_free(tenant, asked.id))
        made = await self.held.make(tenant, asked.id, wish, user)
        await self._made(made)
        under = await self._under(call, made, user, stands_in=False)
        if under is None:
            raise not_found(made.id)
        return under

    def _first_wish(self, call: Call, directive: Directive, asked: Wanted) -> ContextWish | None:
        """The context that this call makes; None: it may not store anything.

        Raises: RequestError 404 when it does not ask to make one, 400 when it cannot.
        """
        if asked.how != "shared":
            raise not_found(asked.id)
        if directive.no_store or directive.ttl_s == 0:
            return None
        base = base_of(call)
        check_size(base, "messages", self._rules.limits)
        wish = ContextWish(base)
        if directive.ttl_s is not None:
            wish = replace(wish, ttl_s=directive.ttl_s)
        if directive.priority is not None:
            wish = replace(wish, priority=directive.priority)
        return replace(wish, model=call.model)

    def _not_yet_made(self, tenant: str, id_: str, wish: ContextWish, user: str | None) -> Terms:
        now = self._now()
        return Terms(
            tenant=tenant,
            id=id_,
            edition="",
            allowed_users=wish.allowed_users,
            ttl_s=wish.ttl_s,
            priority=wish.priority,
            model=wish.model,
            made_by=user,
            created_at=now,
            renewed_at=now,
        )

    async def _is_free(self, tenant: str, id_: str) -> bool:
        """Whether the ID names no answers: else those who use it so must not be shut out, or be shared.

        A store that does not answer may hold such answers.
        """
        if (tenant, id_) in self._plain:
            return False
        try:
            return not await self._names_answers(tenant, id_)
        except StoreError:
            return False

    async def in_view(self, selector: Selector, view: Principal) -> Selector:
        """Of what is selected, that which ``view`` may see.

        Keys of no user stand for their tenant. A user sees nothing of what another has for itself, nor
        of what is shared in a context that the user may not use. Raises: StoreError.
        """
        if view.viewer is None:
            return selector
        held = self.held.listed(view.tenant)
        circles = [terms.edition async for terms in held if may_use(terms, view.viewer)]
        return replace(selector, viewer=view.viewer, circles=tuple(circles))

    # ---- changes

    async def put(
        self, tenant: str, id_: str, wish: ContextWish, user: str | None, old: Terms | None
    ) -> Terms:
        """See :meth:`ContextRecords.put`; other processes hear of it."""
        if old is None:
            wish = replace(wish, by_id=await self._is_free(tenant, id_))
        terms = await self.held.put(tenant, id_, wish, user, old)
        await self._made(terms)
        return terms

    async def delete(self, terms: Terms) -> bool:
        """See :meth:`ContextRecords.delete`."""
        gone = await self.held.delete(terms)
        self._forget_name(terms.tenant, terms.id)
        return gone

    async def _made(self, terms: Terms) -> None:
        self._learn_name(terms.tenant, terms.id)
        if self._news is not None:
            with suppress(StoreError):  # the others will read it
                await self._news.tell(_TOPIC, {"tenant": terms.tenant, "id": terms.id})

    async def sweep(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """For ever: texts of contexts that have expired leave the store."""
        while True:
            with suppress(StoreError):
                await self.held.sweep()
            await sleep(SWEEP_S)

    # ---- its KV

    async def prefill(self, terms: Terms) -> int:
        """Compute the text's KV, or keep alive what is there; how many tokens it has.

        Raises: GatewayError, StoreError.
        """
        base = await self.held.base(terms)
        target = self._router.target(terms.model or DEFAULT_MODEL, named=terms.model is not None)
        if base is None or not isinstance(target.backend, Prefills):
            return 0
        return await target.backend.prefill_kv(
            base, salt=self.salt(terms), priority=terms.priority, ttl_s=terms.ttl_s
        )

    async def drop_kv(self, terms: Terms) -> int:
        """Forget the KV of all that was asked under it; how many tokens went."""
        tokens = 0
        for backend in self._router.backends:
            with suppress(GatewayError):  # one that is down holds no KV that could be used
                tokens += await backend.invalidate_kv(self.salt(terms))
        return tokens

    def salt(self, terms: Terms) -> str:
        """The salt of its KV blocks."""
        return kv_salt(scope_of(terms), self._rules.kv_secret)

    # ---- use

    def _note_use(self, terms: Terms, user: str | None) -> None:
        """Count it and keep the context alive, behind the caller's back."""
        due = self.held.used(terms)
        self._tasks.start(self._write_use(terms, user, due=due), name="context use")

    async def _write_use(self, terms: Terms, user: str | None, *, due: bool) -> None:
        with suppress(StoreError, GatewayError):
            await self.held.count(terms, user)
            if due:
                await self.held.write_use(terms)
                await self.prefill(terms)

    # ---- names

    async def load(self) -> None:
        """Read which contexts there are; what cannot be read now is read later."""
        self._names_at, changed = self._now(), self._names_changed
        with suppress(StoreError):
            names = await self.held.names()
            if changed == self._names_changed:  # else it is older than what was heard
                self._names = names

    def _learn_name(self, tenant: str, id_: str) -> None:
        self._names_changed += 1
        self._names.add((tenant, id_))

    def _forget_name(self, tenant: str, id_: str) -> None:
        self._names_changed += 1
        self._names.discard((tenant, id_))

    async def _heard(self, message: Mapping[str, Any]) -> None:
        tenant, id_ = message.get("tenant"), message.get("id")
        if isinstance(tenant, str) and isinstance(id_, str):
            self._learn_name(tenant, id_)
