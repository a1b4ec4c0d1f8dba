"""aiohttp's server with OpenAI error objects for what fails before or outside a handler.

A request that is no HTTP, a header that is too long, an odd ``Expect``: aiohttp answers these itself, as
text and without a request id. Clients of an API read one kind of error.
"""

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import (
    BadStatusLine,
    InvalidHeader,
    InvalidURLError,
    LineTooLong,
    PayloadEncodingError,
)

from gateway.errors import ClientFault, GatewayError, OurFault
from gateway.routes.shape import error_response, new_id, request_id_of

_BAD_REQUESTS: Final[Mapping[type[BaseException], tuple[int, str, str]]] = {
    LineTooLong: (
        431, "header_too_long", "The request line or a header is longer than the server reads."
    ),
    InvalidHeader: (400, "invalid_header", "A header of the request is not valid HTTP."),
    InvalidURLError: (400, "invalid_request_line", "The address of the request is not valid."),
    BadStatusLine: (400, "invalid_request_line", "The request line is not valid HTTP."),
    PayloadEncodingError: (
        400, "broken_body", "The request body is not encoded as its headers say."
    ),
}  # fmt: skip


class JsonErrorProtocol(web.RequestHandler):
    """A connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See the base class, which logs it; the bytes of the request are not repeated."""
        super().handle_error(request, status, exc, message)
        error: GatewayError = OurFault(
            "The gateway failed to handle this request.", code="internal_error", status=status
        )
        if status < 500:
            error = _bad_request(exc, tls=(message or "").startswith("Received HTTPS"))
        response = error_response(error, f"req-{new_id()}")
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """See the base class; an answer of aiohttp's own becomes an error object."""
        if isinstance(resp, web.HTTPException):
            resp = _as_error(request, resp)
        return await super().finish_response(request, resp, start_time)


class JsonErrorServer(web.Server):
    """Makes the connections."""

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return JsonErrorProtocol(self, loop=self._loop, **self._kwargs)


class JsonErrorRunner(web.AppRunner):
    """Runs an application on such a server."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return JsonErrorServer(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,  # noqa: SLF001 - aiohttp has no public way to name another protocol
        )


def _bad_request(exc: BaseException | None, *, tls: bool) -> ClientFault:
    if tls:
        return ClientFault("This port speaks HTTP and not HTTPS.", code="invalid_request_line")
    for kind, (status, code, told) in _BAD_REQUESTS.items():
        if isinstance(exc, kind):
            return ClientFault(told, status=status, code=code)
    return ClientFault("The request is not valid HTTP.", code="bad_request")


def _as_error(request: web.BaseRequest, given: web.HTTPException) -> web.Response:
    code = {404: "unknown_url", 405: "method_not_allowed", 417: "expectation_failed"}
    error = ClientFault(
        f"{given.reason}.", status=given.status, code=code.get(given.status, "bad_request")
    )
    return error_response(error, request_id_of(request))
