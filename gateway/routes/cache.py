"""``/v1/cache/*``: look at what is stored and clear it. A tenant sees its own and no more."""

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp import web

from gateway.auth import Authenticator
from gateway.backends.figures import figures
from gateway.contexts import Contexts
from gateway.errors import ClientFault, GatewayError
from gateway.explaining import Explainer
from gateway.headers import stored_answer
from gateway.numbers import Ask
from gateway.pipeline import Pipeline
from gateway.router import Router
from gateway.routes.shape import body_of, json_response, object_of
from gateway.savings import savings
from gateway.stats import dicts, latency, stats_of
from gateway.store.base import Selector
from gateway.store.tiers import Tiers
from policies.contexts import forbidden, may_see, scope_of
from policies.freshness import EntryMeta
from policies.keys import Principal, Scope, as_user, kv_salt, public_key
from policies.rules import Rules

MAX_PAGE: Final = 1000
KEY_BYTES: Final = 32
SHOWN_BYTES: Final = 16
"""Of a key, that :func:`policies.keys.public_key` shows."""
MIN_DIGITS: Final = 8
"""Of a shown key, that find it where no others begin so; the log shows 12."""
_SELECTORS: Final = ("cache_key", "prefix", "namespace", "context", "user", "model", "batch", "tag")


class Cache:
    """Statistics, entries, invalidation."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        router: Router,
        store: Tiers,
        pipeline: Pipeline,
        contexts: Contexts,
        explainer: Explainer,
        rules: Rules,
        now: Callable[[], float],
        numbers: Ask,
    ) -> None:
        self._authenticator = authenticator
        self._router = router
        self._store = store
        self._pipeline = pipeline
        self._contexts = contexts
        self._explainer = explainer
        self._rules = rules
        self._now = now
        self._numbers = numbers

    async def stats(self, request: web.Request) -> web.Response:
        """Counters since the start; a tenant without the admin right sees its own only."""
        principal = self._view(request)
        numbers = await self._numbers()
        counted = numbers.statistics
        if not principal.admin:
            own = counted.of_tenant(principal.tenant)
            return json_response(
                {
                    "tenant": principal.tenant,
                    **own.total.as_dict(),
                    "levels": dicts(own.by("level").items()),
                    "tiers": dicts(own.by("tier").items()),
                    "models": dicts(own.by("model").items()),
                    "savings": savings(own),
                    "latency": latency(own.by("level")),
                }
            )
        return json_response(
            {**stats_of(numbers, counted.views()), "backends": await figures(self._router.backends)}
        )

    async def entries(self, request: web.Request) -> web.Response:
        """A page of entries in the order of their keys. Raises: ClientFault 400."""
        query, view = request.query, self._view(request)
        tenant = tenant_asked_for(request, view)
        limit = page_limit(query.get("limit", "100"))
        selector = Selector(tenant, tier=query.get("tier"), prefix=query.get("prefix"))
        found = await self._store.scan(
            await self._contexts.in_view(selector, view),
            after=_cursor(query.get("cursor")),
            limit=limit + 1,
        )
        page = found[:limit]
        return json_response(
            {
                "object": "list",
                "data": [self._shown(meta, view) for meta in page],
                "has_more": len(found) > limit,
                "next_cursor": _cursor_after(page[-1]) if len(found) > limit else None,
            }
        )

    async def entry(self, request: web.Request) -> web.Response:
        """One entry, by the key that ``X-Cache-Key`` showed or its first digits.

        ``?response=false`` leaves the answer out, and is not counted as a read; ``?kv=true`` asks the
        engine what it has of the prompt. Raises: ClientFault 404, 400 for digits that several have.
        """
        meta = await self._find(request, most=2)
        asks_kv = _flag(request, "kv", default=False)
        told = {
            **self._shown(meta, self._view(request)),
            **await self._explainer.entry(meta, kv=asks_kv),
        }
        if not _flag(request, "response", default=True):
            return json_response(told)
        entry = await self._store.get(meta.key, now=self._now())
        if entry is None:
            raise _not_found()
        return json_response({**told, "response": stored_answer(entry.body).body})

    async def delete_entry(self, request: web.Request) -> web.Response:
        """Drop one entry. Raises: ClientFault 404."""
        meta = await self._find(request)
        gone = await self._pipeline.clear(Selector(meta.scope.tenant, key=meta.key))
        return json_response({"deleted": len(gone), "key": public_key(meta.key)})

    async def invalidate(self, request: web.Request) -> web.Response:
        """Drop what the body names; answers how many entries and KV tokens went that one may see.

        Raises: ClientFault 400 for an unknown or missing selector, 403 for another user;
            RequestError 403 for a shared context that this user may not use.
        """
        view = self._view(request)
        wish = object_of(await body_of(request))
        selector, everything = _selector(wish, view)
        view = _about(selector.user, view)
        shared = await self._shared_scopes(selector, view, everything=everything)
        gone = await self._pipeline.clear(await self._contexts.in_view(selector, view))
        salts = self._salts(selector, view, shared, everything=everything)
        tokens = await self._drop_kv(salts)
        return json_response({"entries": len(gone), "kv_tokens": tokens})

    async def _shared_scopes(
        self, selector: Selector, view: Principal, *, everything: bool
    ) -> list[Scope]:
        """Of the shared contexts that are meant: all that the view may use, or the one that is named."""
        held = self._contexts.held
        if everything:
            return [scope_of(one) async for one in held.listed(view.tenant) if may_see(one, view)]
        if selector.context is None:
            return []
        terms = await held.find(view.tenant, selector.context)
        if terms is None:  # a kind of context, or nothing
            return []
        if not may_see(terms, view):
            raise forbidden()
        return [scope_of(terms)]

    def _salts(
        self, selector: Selector, view: Principal, shared: list[Scope], *, everything: bool
    ) -> Iterable[str | None]:
        """Which KV blocks go along: blocks know their scope and nothing finer."""
        if everything and view.admin:
            return (None,)
        scopes = [*shared]
        if everything:
            scopes.append(Scope(kind="tenant", tenant=view.tenant))
        user = view.user if everything else selector.user
        if user is not None:
            scopes.append(Scope(kind="user", tenant=view.tenant, user=user))
        if selector.batch is not None:
            scopes.append(Scope(kind="batch", tenant=view.tenant, batch=selector.batch))
        return [kv_salt(scope, self._rules.kv_secret) for scope in scopes]

    async def _drop_kv(self, salts: Iterable[str | None]) -> int:
        tokens = 0
        for salt in salts:
            for backend in self._router.backends:
                try:
                    tokens += await backend.invalidate_kv(salt)
                except GatewayError:
                    continue  # a backend that is down holds no KV that could be used
        return tokens

    async def _find(self, request: web.Request, *, most: int = 1) -> EntryMeta:
        """The entry whose key is in the path; with ``most`` over 1 its first digits will do."""
        view, wanted = self._view(request), request.match_info["key"]
        tenant = None if view.admin else view.tenant
        whole = len(wanted) == 2 * SHOWN_BYTES
        if not whole and (most == 1 or not MIN_DIGITS <= len(wanted) < 2 * SHOWN_BYTES):
            raise _not_found()
        try:
            start = bytes.fromhex(wanted + "0" * (len(wanted) % 2))
        except ValueError:
            raise _not_found() from None
        # What is shown of a key is its beginning, and keys come in order: the next one is it.
        selector = await self._contexts.in_view(Selector(tenant), view)
        page = await self._store.scan(selector, after=start, limit=most)
        found = [meta for meta in page if public_key(meta.key).startswith(wanted)]
        if not found:
            raise _not_found()
        if len(found) > 1:
            message = "Several entries begin so; give more digits."
            raise ClientFault(message, code="ambiguous_key", param="key")
        return found[0]

    def _view(self, request: web.Request) -> Principal:
        return self._authenticator.view(request.headers)

    def _shown(self, meta: EntryMeta, view: Principal) -> dict[str, Any]:
        sees_user = view.viewer in {None, meta.user}
        age_s = max(0.0, self._now() - meta.stored_at)
        return {
            "key": public_key(meta.key),
            "cache_key": meta.cache_key,
            "tenant": meta.scope.tenant,
            "scope": meta.scope.kind,
            "user": meta.user if sees_user else None,
            "model": meta.model,
            "endpoint": meta.endpoint,
            "tier": meta.tier,
            "priority": meta.priority,
            "status": meta.status,
            "age_s": round(age_s, 3),
            "ttl_left_s": round(meta.ttl_s - age_s, 3),
            "size_bytes": meta.size_bytes,
            "cost_s": round(meta.cost_s, 6),
            "prompt_tokens": meta.prompt_tokens,
            "completion_tokens": meta.completion_tokens,
            "tags": list(meta.tags),
            "batch": meta.batch_id,
            "context": meta.context,
        }


def _about(user: str | None, view: Principal) -> Principal:
    """The view in which a clearing about ``user`` is made. Raises: ClientFault 403."""
    if user is None or view.viewer is None:
        return view
    if user != view.user and not view.trusted:
        raise ClientFault(
            "This key may not clear what another user has.",
            code="user_mismatch",
            status=403,
            param="user",
        )
    return as_user(view, user)


def _selector(wish: dict[str, Any], principal: Principal) -> tuple[Selector, bool]:
    for name in wish:
        if name not in _SELECTORS and name != "all":
            raise ClientFault(
                f"Unknown member; allowed are all, {', '.join(_SELECTORS)}.",
                code="invalid_selector",
                param=name[:64],
            )
    everything = wish.get("all", False)
    if not isinstance(everything, bool):
        raise ClientFault("all must be true or false.", code="invalid_type", param="all")
    named = {name: wish[name] for name in _SELECTORS if wish.get(name) is not None}
    for name, value in named.items():
        if not isinstance(value, str) or not value:
            raise ClientFault(
                f"{name} must be a non-empty string.", code="invalid_type", param=name
            )
    if everything and named:
        raise ClientFault(
            "Name entries or ask for all, not both.", code="invalid_selector", param="all"
        )
    if not everything and not named:
        raise ClientFault(
            f"Say what to drop: one of {', '.join(_SELECTORS)}, or all: true.",
            code="missing_field",
        )
    tenant = None if everything and principal.admin else principal.tenant
    return Selector(tenant, **named), everything


def tenant_asked_for(request: web.Request, principal: Principal) -> str | None:
    """The tenant that is looked at; ``None``, for an admin alone, means all.

    Raises: ClientFault 403 ``forbidden``.
    """
    tenant = request.query.get("tenant", None if principal.admin else principal.tenant)
    if tenant != principal.tenant and not principal.admin:
        raise ClientFault(
            "This key may only see its own tenant.", code="forbidden", status=403, param="tenant"
        )
    return tenant


def page_limit(text: str) -> int:
    """How many things a page may have. Raises: ClientFault 400."""
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= MAX_PAGE:
        raise ClientFault(
            f"limit must be a whole number from 1 to {MAX_PAGE}.",
            code="invalid_value",
            param="limit",
        )
    return int(text)


def _cursor(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        key = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ClientFault(
            "cursor is not one that this server gave.", code="invalid_value", param="cursor"
        )
    return key


def _cursor_after(meta: EntryMeta) -> str:
    return base64.urlsafe_b64encode(meta.key).decode()


def _flag(request: web.Request, name: str, *, default: bool) -> bool:
    said = request.query.get(name, str(default)).lower()
    if said not in {"true", "false"}:
        raise ClientFault(f"{name} must be true or false.", code="invalid_value", param=name)
    return said == "true"


def _not_found() -> ClientFault:
    return ClientFault("No such entry.", code="entry_not_found", status=404, param="key")
