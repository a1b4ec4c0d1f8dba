"""``POST /v1/cache/explain``: what would happen to this very request, asked by this very key.

Body and headers are those of the model call; ``?endpoint=`` says which call it is, where the body's
fields do not.
"""

from typing import Final, get_args

from aiohttp import web

from gateway.auth import Authenticator
from gateway.errors import ClientFault
from gateway.explaining import Explainer
from gateway.off_loop import off_loop
from gateway.routes.shape import body_of, call_in, guarded, json_of, json_response, spoken_in
from policies.call import Endpoint, endpoint_of
from policies.rules import Limits

ENDPOINTS: Final[tuple[Endpoint, ...]] = get_args(Endpoint)


class Explain:
    """The handler."""

    def __init__(
        self, *, authenticator: Authenticator, explainer: Explainer, limits: Limits
    ) -> None:
        self._authenticator = authenticator
        self._explainer = explainer
        self._limits = limits

    def mount(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_post("/v1/cache/explain", guarded(self.explain))

    async def explain(self, request: web.Request) -> web.Response:
        """The explanation, or the error that the call itself would be answered with."""
        principal = self._authenticator.principal(request.headers)
        raw = await body_of(request)
        endpoint = endpoint_asked(request.query.get("endpoint"), raw)
        call, directive = await off_loop(
            len(raw), call_in, endpoint, raw, spoken_in(request), self._limits
        )
        return json_response(await self._explainer.explain(call, directive, principal))


def endpoint_asked(named: str | None, raw: bytes) -> Endpoint:
    """Which call it is. Raises: ClientFault 400."""
    if named is None:
        return endpoint_of(json_of(raw))
    for endpoint in ENDPOINTS:
        if endpoint == named:
            return endpoint
    raise ClientFault(
        f"endpoint must be one of {', '.join(ENDPOINTS)}.", code="invalid_value", param="endpoint"
    )
