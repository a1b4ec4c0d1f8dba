"""``/dashboard``: the page for whoever asks, its numbers for admin keys only.

A browser cannot send a key with the address it opens, so the page holds nothing that is worth one:
its script asks for the key and sends it along when it asks for the numbers.
"""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Final

from aiohttp import ETag, web

from gateway import sse
from gateway.auth import Authenticator
from gateway.dashboard import Dashboard
from gateway.errors import ClientFault
from gateway.pages import PAGE, load
from gateway.routes.shape import guarded, request_id_of
from policies.keys import Principal

WRITE_S: Final = 30.0
"""A viewer that takes nothing for so long is let go."""
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked for each time: 304 while it is the same
}


class DashboardRoutes:
    """The handlers. ``facts`` are what never changes while the gateway runs."""

    def __init__(
        self, *, authenticator: Authenticator, dashboard: Dashboard, facts: Mapping[str, Any]
    ) -> None:
        self._authenticator = authenticator
        self._dashboard = dashboard
        self._facts = facts
        self._files = load()

    def mount(self, router: web.UrlDispatcher) -> None:
        """Put the handlers where they belong."""
        router.add_get("/", guarded(self.home))
        router.add_get("/dashboard", guarded(self.page))
        router.add_get("/dashboard/live", guarded(self.live))
        router.add_get("/dashboard/{file:.+}", guarded(self.file))

    async def home(self, _: web.Request) -> web.Response:
        """Redirect the bare address to the page."""
        return web.Response(status=302, headers={**HEADERS, "Location": "/dashboard"})

    async def page(self, request: web.Request) -> web.Response:
        """The page. Needs no key."""
        return self._serve(request, PAGE)

    async def file(self, request: web.Request) -> web.Response:
        """What the page is made of. Needs no key. Raises: ClientFault 404."""
        return self._serve(request, request.match_info["file"])

    async def live(self, request: web.Request) -> web.StreamResponse:
        """The numbers as server-sent events: ``hello``, ``whole``, then ``changes``.

        Raises: ClientFault 401, 403 ``admin_only``.
        """
        principal = self._admin(request)
        headers = {
            **HEADERS,
            "Content-Type": sse.CONTENT_TYPE,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Request-ID": request_id_of(request),
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":  # a stream's bytes would follow the head
            return response
        await response.write(sse.encode_named("hello", {**self._facts, "tenant": principal.tenant}))
        try:
            async with aclosing(self._dashboard.frames()) as frames:
                async for frame in frames:
                    async with asyncio.timeout(WRITE_S):
                        await response.write(frame)
            await response.write_eof()
        except ConnectionError:  # the viewer is gone
            pass
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    def _admin(self, request: web.Request) -> Principal:
        principal = self._authenticator.view(request.headers)
        if not principal.admin:
            raise ClientFault(
                "The dashboard shows all tenants: it needs a key of a tenant with `admin: true`.",
                code="admin_only",
                status=403,
            )
        return principal

    def _serve(self, request: web.Request, name: str) -> web.Response:
        held = self._files.get(name)
        if held is None:
            raise ClientFault("No such file.", code="unknown_url", status=404)
        asked = request.if_none_match or ()
        same = any(one.value in {held.etag, "*"} for one in asked)
        if same:
            response = web.Response(status=304, headers=HEADERS)
        else:
            response = web.Response(
                body=held.body, content_type=held.content_type, charset="utf-8", headers=HEADERS
            )
        response.etag = ETag(held.etag)
        return response
