"""``/v1/cache/conversations`` and ``/v1/cache/recommendations``: what was measured, and what follows.

A key sees its own tenant's conversations; one that is bound to a user, that user's. What it may not
see is answered as what is not there.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from aiohttp import web

from gateway.analytics import Conversation, Conversations, shown
from gateway.auth import Authenticator
from gateway.errors import ClientFault
from gateway.journal import Journal
from gateway.pipeline import Pipeline
from gateway.routes.cache import page_limit, tenant_asked_for
from gateway.routes.shape import guarded, json_response
from gateway.store.base import Selector
from policies.analytics import recommend
from policies.keys import Principal
from policies.rules import Rules


class Analytics:
    """The handlers."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        conversations: Conversations,
        journal: Journal,
        pipeline: Pipeline,
        rules: Rules,
    ) -> None:
        self._authenticator = authenticator
        self._conversations = conversations
        self._journal = journal
        self._pipeline = pipeline
        self._rules = rules

    def mount(self, router: web.UrlDispatcher) -> None:
        """Put the handlers where they belong."""
        one = "/v1/cache/conversations/{id:.+}"
        router.add_get("/v1/cache/conversations", guarded(self.conversations))
        router.add_get(one, guarded(self.conversation))
        router.add_delete(one, guarded(self.forget))
        router.add_get("/v1/cache/recommendations", guarded(self.recommendations))

    async def conversations(self, request: web.Request) -> web.Response:
        """The latest conversations first. Raises: ClientFault 400, 403."""
        visible, limit = self._visible(request), page_limit(request.query.get("limit", "100"))
        data = [one.as_dict(self._rules) for one in visible[:limit]]
        return json_response({"object": "list", "data": data, "has_more": len(visible) > limit})

    async def conversation(self, request: web.Request) -> web.Response:
        """The latest one of that name. Raises: ClientFault 404."""
        named = self._named(request)
        if not named:
            raise _not_found()
        return json_response(named[0].as_dict(self._rules))

    async def forget(self, request: web.Request) -> web.Response:
        """Drop a conversation: its numbers and the answers stored under its name.

        Raises: ClientFault 404 when there are neither.
        """
        named, name = self._named(request), request.match_info["id"]
        view = self._view(request)
        tenant, user = view.tenant, view.viewer
        if named:
            tenant, user = named[0].tenant, named[0].user
            self._conversations.forget(named[0])
        gone = await self._pipeline.clear(Selector(tenant, cache_key=name, user=user))
        if not named and not gone:
            raise _not_found()
        return json_response({"id": name, "deleted": True, "entries": len(gone)})

    async def recommendations(self, request: web.Request) -> web.Response:
        """What the numbers of each conversation speak for. Raises: ClientFault 400, 403."""
        visible, limit = self._visible(request), page_limit(request.query.get("limit", "100"))
        data: list[dict[str, Any]] = [
            {"conversation": one.name, "tenant": one.tenant, "user": one.user, **shown(advice)}
            for one in visible
            for advice in recommend(one.tally, self._rules)
        ]
        return json_response(
            {"object": "list", "data": data[:limit], "has_more": len(data) > limit}
        )

    def _named(self, request: web.Request) -> list[Conversation]:
        name = request.match_info["id"]
        return [one for one in self._visible(request) if one.name == name]

    def _visible(self, request: web.Request) -> Sequence[Conversation]:
        """What the key may see, the latest first."""
        view = self._view(request)
        tenant, user = tenant_asked_for(request, view), view.viewer
        self._journal.settle()
        if tenant is not None:
            return self._conversations.of(tenant, user=user)
        of_all = [
            one
            for tenant in self._conversations.tenants()
            for one in self._conversations.of(tenant, user=user)
        ]
        return sorted(of_all, key=attrgetter("tally.last_s"), reverse=True)

    def _view(self, request: web.Request) -> Principal:
        return self._authenticator.view(request.headers)


def _not_found() -> ClientFault:
    return ClientFault(
        "No such conversation.", code="conversation_not_found", status=404, param="id"
    )
