"""``/v1/cache/contexts``: make, look at and revoke shared contexts.

Who speaks for a user (the key's own, or ``X-Cache-User``) has that user's rights. A context is
managed by keys of no user, by the user who made it, and by admins; anybody may make one. Who may
only use it sees its text and its lifetime, but not who else may, nor how often anybody did.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from aiohttp import web

from gateway.auth import Authenticator
from gateway.contexts import Contexts
from gateway.errors import GatewayError
from gateway.flights import Tasks
from gateway.pipeline import Pipeline
from gateway.router import Router
from gateway.routes.cache import tenant_asked_for
from gateway.routes.shape import body_of, guarded, json_response, object_of
from gateway.store.base import Selector, StoreError
from policies.contexts import Terms, forbidden, may_manage, may_use, not_found, parse_context
from policies.directive import read_name
from policies.keys import Principal
from policies.rules import Rules

PREFILL_WAIT_S: Final = 30.0
"""How long a PUT waits for the KV; the prefill goes on after that."""


class ContextRoutes:
    """The handlers. ``now`` is unix time in seconds."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        contexts: Contexts,
        router: Router,
        pipeline: Pipeline,
        rules: Rules,
        tasks: Tasks,
        now: Callable[[], float],
    ) -> None:
        self._authenticator = authenticator
        self._contexts = contexts
        self._router = router
        self._pipeline = pipeline
        self._rules = rules
        self._tasks = tasks
        self._now = now

    def mount(self, router: web.UrlDispatcher) -> None:
        """Put the handlers where they belong."""
        one = r"/v1/cache/contexts/{id:[\s\S]+}"
        router.add_get("/v1/cache/contexts", guarded(self.list))
        router.add_get(one, guarded(self.get))
        router.add_put(one, guarded(self.put))
        router.add_delete(one, guarded(self.delete))

    async def list(self, request: web.Request) -> web.Response:
        """The contexts that the asking user may use or manage."""
        view, tenant = self._asked(request)
        data = [
            await self._shown(terms, view)
            async for terms in self._contexts.held.listed(tenant)
            if may_manage(terms, view) or may_use(terms, view.user)
        ]
        return json_response({"object": "list", "data": data})

    async def get(self, request: web.Request) -> web.Response:
        """One context with its text. Raises: RequestError 403, 404."""
        view, tenant = self._asked(request)
        terms = await self._found(request, tenant)
        if not may_manage(terms, view) and not may_use(terms, view.user):
            raise forbidden()
        base = await self._contexts.held.base(terms)
        if base is None:
            raise not_found(terms.id)
        return json_response({**await self._shown(terms, view), "base_messages": base})

    async def put(self, request: web.Request) -> web.Response:
        """Make or replace it, and have its KV computed: 201 when it is new, else 200.

        Raises: RequestError 400, 403; ClientFault 404 for an unknown model, 409 for too many.
        """
        view, tenant = self._asked(request)
        wish = parse_context(object_of(await body_of(request)), limits=self._rules.limits)
        if wish.model is not None:
            self._router.target(wish.model)
        id_ = self._id(request)
        old = await self._contexts.held.find(tenant, id_)
        if not may_manage(old, view):
            raise forbidden()
        terms = await self._contexts.put(tenant, id_, wish, view.user, old)
        if old is not None and old.edition != terms.edition:
            await self._clear(old)
        shown = await self._shown(terms, view)
        tokens = await self._prefilled(terms)
        return json_response({**shown, "kv_tokens": tokens}, status=200 if old else 201)

    async def delete(self, request: web.Request) -> web.Response:
        """Revoke it, and drop its answers and its KV. Raises: RequestError 403, 404."""
        view, tenant = self._asked(request)
        terms = await self._found(request, tenant)
        if not may_manage(terms, view):
            raise forbidden()
        if not await self._contexts.delete(terms):
            raise not_found(terms.id)
        return json_response({"id": terms.id, "deleted": True, **await self._clear(terms)})

    def _asked(self, request: web.Request) -> tuple[Principal, str]:
        """In whose view, and about which tenant: an admin may name another."""
        view = self._authenticator.view(request.headers)
        named = tenant_asked_for(request, view) if "tenant" in request.query else None
        return view, named or view.tenant

    def _id(self, request: web.Request) -> str:
        return str(read_name(request.match_info["id"], "id", self._rules.limits))

    async def _found(self, request: web.Request, tenant: str) -> Terms:
        id_ = self._id(request)
        terms = await self._contexts.held.find(tenant, id_)
        if terms is None:
            raise not_found(id_)
        return terms

    async def _shown(self, terms: Terms, view: Principal) -> dict[str, Any]:
        held = self._contexts.held
        shown: dict[str, Any] = {
            "id": terms.id,
            "object": "cache.context",
            "ttl": terms.ttl_s,
            "priority": terms.priority,
            "model": terms.model,
            "by_id": terms.by_id,
            "created": int(terms.created_at),
            "ttl_left_s": round(max(0.0, await held.expires_at(terms) - self._now()), 3),
        }
        if may_manage(terms, view):
            usage = await held.usage(terms)
            shown["allowed_users"] = terms.allowed_users
            shown["made_by"] = terms.made_by
            shown["usage"] = {
                "total": usage.total,
                "users": usage.users,
                "nobody": usage.nobody,
                "others": usage.others,
            }
        return shown

    async def _prefilled(self, terms: Terms) -> int | None:
        """Tokens whose KV is there now; None when that is not known: it fails, or takes longer."""
        done: list[int] = []

        async def prefill() -> None:
            with suppress(GatewayError, StoreError):
                done.append(await self._contexts.prefill(terms))

        await asyncio.wait([self._tasks.start(prefill(), name="prefill")], timeout=PREFILL_WAIT_S)
        return done[0] if done else None

    async def _clear(self, terms: Terms) -> dict[str, int]:
        """Make room: nobody can come to what is dropped here, so a failure costs room only."""
        entries = 0
        with suppress(StoreError):
            entries = len(await self._pipeline.clear(Selector(terms.tenant, context=terms.id)))
        return {"entries": entries, "kv_tokens": await self._contexts.drop_kv(terms)}
