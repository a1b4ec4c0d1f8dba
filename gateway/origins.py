"""The gateway's border against web pages: hosts, origins and content types, before any handler.

A browser sends what any page asks it to, from inside the operator's network. Without tenants no key
tells such a request from the operator's own, so three headers that a page cannot choose must fit:
``Host`` (a page may have its own name point at this machine), ``Origin`` and ``Sec-Fetch-Site``. With
tenants the key does that: a page does not have one. A body that is not declared as JSON is refused
always, for a browser sends other types to foreign hosts without asking first.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway.config import Config
from gateway.errors import ClientFault
from gateway.routes.shape import error_response, request_id_of

EXPOSED: Final = ", ".join(
    (
        "Age", "Cache-Status", "Location", "Retry-After", "X-Cache-Debug", "X-Cache-Fallback",
        "X-Cache-Hit", "X-Cache-Key", "X-Cache-Level", "X-Cache-Miss-Reason", "X-Cache-Stale",
        "X-Cache-TTL", "X-Cache-Tier", "X-Cache-Tokens-Saved", "X-Request-ID", "X-Response-Time",
        "X-Should-Retry",
    )
)  # fmt: skip
"""Headers of an answer that a page of a named origin may read."""
ENCODINGS: Final = ("gzip", "deflate", "br", "zstd", "identity")
"""Of a request's body; aiohttp decodes them, and no further than ``limits.max_body_bytes``."""
METHODS: Final = "GET, POST, PUT, DELETE"
PREFLIGHT_S: Final = 600
_REMEMBERED_HOSTS: Final = 256
_PAGES: Final = ("/", "/dashboard")
_JSON: Final = "application/json"
_log = structlog.get_logger("kvgate")


class Border:
    """What a request must fit before a handler sees it. ``is_open``: no key is needed."""

    def __init__(self, *, is_open: bool, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._is_open = is_open
        self._hosts = frozenset(hosts)
        self._origins = frozenset(origins)
        self._good_hosts: set[str] = set()

    def guard(self, app: web.Application) -> None:
        """Stand before all routes of ``app``."""
        app.middlewares.append(self.pass_in)
        if self._origins:
            app.on_response_prepare.append(self._show)

    @web.middleware
    async def pass_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the request in, answer a preflight, or refuse."""
        try:
            if self._is_open:
                self._check_source(request)
            if request.body_exists:
                if request.headers.get(hdrs.CONTENT_TYPE) != _JSON:
                    _check_type(request)
                if hdrs.CONTENT_ENCODING in request.headers:
                    _check_encoding(request)
        except ClientFault as error:
            request_id = request_id_of(request)
            where = {name: request.headers.get(name) for name in (hdrs.HOST, hdrs.ORIGIN)}
            _log.info("refused at the border", id=request_id, code=error.code, **where)
            return error_response(error, request_id)
        if request.method == hdrs.METH_OPTIONS and self._is_named(request):
            return _preflight(request)
        return await handler(request)

    def _check_source(self, request: web.Request) -> None:
        """Raises: ClientFault 403 ``forbidden_origin``."""
        headers = request.headers
        host = headers.get(hdrs.HOST, "")
        if host not in self._good_hosts:
            self._check_host(host)
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None:
            if origin in self._origins:
                return
            if origin.partition("://")[2].lower() != host.lower():
                raise _forbidden(
                    hdrs.ORIGIN, "Web pages of other origins may not ask here: server.cors_origins"
                )
        if headers.get("Sec-Fetch-Site") == "cross-site" and not _is_visit(request):
            raise _forbidden("Sec-Fetch-Site", "Other web sites may not ask here")

    def _check_host(self, host: str) -> None:
        # A client that names no host is no browser.
        name, _, port = host.lower().rpartition(":")
        if not port.isdecimal():
            name = host.lower()
        if host and not (_is_loopback(name) or {name, host.lower()} & self._hosts):
            raise _forbidden(hdrs.HOST, "This host name is not served here: server.allowed_hosts")
        if len(self._good_hosts) < _REMEMBERED_HOSTS:
            self._good_hosts.add(host)

    def _is_named(self, request: web.BaseRequest) -> bool:
        return request.headers.get(hdrs.ORIGIN) in self._origins

    async def _show(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell the browser whether the page may read the answer."""
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if self._is_named(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED

    def __repr__(self) -> str:
        kind = "open" if self._is_open else "keyed"
        return f"<Border {kind}, {len(self._hosts)} hosts, {len(self._origins)} origins>"


def border(config: Config) -> Border:
    """The border that the configuration asks for."""
    server = config.server
    return Border(
        is_open=not config.tenants, hosts=server.allowed_hosts, origins=server.cors_origins
    )


def _preflight(request: web.Request) -> web.Response:
    """What a page of a named origin may send: every method of ours, and the headers it asks for."""
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
        hdrs.VARY: hdrs.ACCESS_CONTROL_REQUEST_HEADERS,
    }
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
    if wanted is not None and wanted.isascii() and wanted.isprintable():
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    if "Access-Control-Request-Private-Network" in request.headers:
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


def _check_type(request: web.Request) -> None:
    """Raises: ClientFault 415 ``unsupported_media_type``."""
    kind = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if kind == _JSON or (kind.startswith("application/") and kind.endswith("+json")):
        return
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical == "/{unknown}":
        return  # that there is no such route says more
    raise ClientFault(
        "The body must be JSON and say so: `Content-Type: application/json`.",
        code="unsupported_media_type",
        status=415,
        param=hdrs.CONTENT_TYPE,
    )


def _check_encoding(request: web.Request) -> None:
    """aiohttp hands on as they are what it cannot decode. Raises: ClientFault 415."""
    named = ",".join(request.headers.getall(hdrs.CONTENT_ENCODING))
    if named.strip().lower() not in ENCODINGS:
        raise ClientFault(
            f"The body may be encoded as one of {', '.join(ENCODINGS)}.",
            code="unsupported_content_encoding",
            status=415,
            param=hdrs.CONTENT_ENCODING,
            headers={hdrs.ACCEPT_ENCODING: ", ".join(ENCODINGS)},
        )


def _is_visit(request: web.Request) -> bool:
    """Whether a person follows a link to a page of ours."""
    return (
        request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
        and request.method == hdrs.METH_GET
        and request.path in _PAGES
    )


def _is_loopback(name: str) -> bool:
    if name.rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _forbidden(header: str, message: str) -> ClientFault:
    return ClientFault(f"{message}.", code="forbidden_origin", status=403, param=header)
