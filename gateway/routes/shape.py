"""What all routes share: bodies in, errors out, request ids, who is asking."""

import asyncio
import itertools
import random
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import structlog
from aiohttp import web

from gateway import exact_json
from gateway.errors import ClientFault, GatewayError, OurFault, from_request_error
from gateway.json_weight import MAX_VALUES, WEIGHED_BYTES, values_in
from gateway.store.base import StoreError
from gateway.write_limit import WRITES
from policies.call import Call, Endpoint, RequestError, parse_call
from policies.directive import Directive, parse_directive
from policies.rules import Limits

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Spoken = tuple[tuple[str, str], ...]
"""Headers that say something about caching."""
_SPOKEN_HEADERS: Final = ("x-cache-", "cache-control")

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BODY_TIMEOUT_S: Final = 60.0
_log = structlog.get_logger("kvgate")


def request_id_of(request: web.BaseRequest) -> str:
    """The client's ``X-Request-ID`` when it is harmless to echo, else a new one."""
    given = request.headers.get("X-Request-ID")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"req-{new_id()}"


_PROCESS: Final = f"{random.getrandbits(64):016x}"
_numbers: Final = itertools.count(random.getrandbits(24))


def new_id() -> str:
    """24 hexadecimal digits: 16 of this process, then a count. No secret, and none repeats."""
    return f"{_PROCESS}{next(_numbers):08x}"


async def body_of(request: web.Request) -> bytes:
    """The request's body.

    Raises:
        ClientFault: 413 ``body_too_large``, 408 ``body_timeout``, 400 ``broken_body`` for one
            that is not encoded as its headers say.
    """
    try:
        if request.content.is_eof():  # nearly always: it came with the head
            whole = request.content.read_nowait()
            if len(whole) > request.client_max_size:
                raise web.HTTPRequestEntityTooLarge(request.client_max_size)
            return whole
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ClientFault(
            f"The request body is larger than {request.client_max_size} bytes.",
            code="body_too_large",
            status=413,
        ) from error
    except web.RequestPayloadError as error:
        raise ClientFault(
            "The request body is not encoded as its headers say.", code="broken_body"
        ) from error
    except TimeoutError as error:
        raise ClientFault(
            "The request body did not arrive in time.", code="body_timeout", status=408
        ) from error


def json_of(raw: bytes) -> Any:
    """``raw`` as JSON.

    Raises: ClientFault 400 ``invalid_json`` with the place of the error, ``too_many_values``.
    """
    if len(raw) > WEIGHED_BYTES and values_in(raw) > MAX_VALUES:
        raise ClientFault(
            f"The request body holds more than {MAX_VALUES} values, where a list or an object counts "
            "as two and a named member as four.",
            code="too_many_values",
        )
    try:
        return exact_json.loads(raw)
    except exact_json.JSONDecodeError as error:
        raise ClientFault(
            f"The request body is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}.",
            code="invalid_json",
        ) from error


def spoken_in(request: web.Request) -> Spoken:
    """The headers that say something about caching."""
    # The first letter spares most names the closer look; a client sends a dozen others.
    return tuple(
        [
            pair
            for pair in request.headers.items()
            if pair[0][0] in "xXcC" and pair[0].lower().startswith(_SPOKEN_HEADERS)
        ]
    )


def call_in(
    endpoint: Endpoint, raw: bytes, spoken: Iterable[tuple[str, str]], limits: Limits
) -> tuple[Call, Directive]:
    """What a request wants. Raises: RequestError, ClientFault 400 ``invalid_json``."""
    body = json_of(raw)
    call = replace(parse_call(endpoint, body), size_bytes=len(raw))
    wish, key = body.get("kv_cache"), body.get("prompt_cache_key")
    return call, parse_directive(wish, spoken, limits=limits, prompt_cache_key=key)


def object_of(raw: bytes) -> dict[str, Any]:
    """``raw`` as a JSON object, ``{}`` when there is no body. Raises: ClientFault 400."""
    body = json_of(raw) if raw.strip() else {}
    if not isinstance(body, dict):
        raise ClientFault("The request body must be a JSON object.", code="invalid_type")
    return body


def json_response(body: Any, *, status: int = 200, **headers: str) -> web.Response:
    """``body`` as JSON."""
    return web.Response(
        body=exact_json.dumps(body), status=status, content_type="application/json", headers=headers
    )


def error_headers(error: GatewayError) -> dict[str, str]:
    """What tells a client when, and whether, to try again."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    mended_by_time = error.status >= 500 and not isinstance(error, ClientFault)
    if not mended_by_time and error.status not in {408, 409, 429}:
        headers["X-Should-Retry"] = "false"
    return headers


def error_response(error: GatewayError, request_id: str, **headers: str) -> web.Response:
    """An OpenAI error object."""
    return json_response(
        error.body(),
        status=error.status,
        **{**error.headers, "X-Request-ID": request_id, **error_headers(error), **headers},
    )


def as_gateway_error(error: Exception, request_id: str) -> GatewayError:
    """Any exception as an error for the wire; a defect of ours is logged with its traceback."""
    match error:
        case GatewayError():
            return error
        case RequestError():
            return from_request_error(error)
        case StoreError():
            return OurFault(
                "The store does not answer.",
                code="store_unavailable",
                status=503,
                retry_after_s=1.0,
            )
        case _:
            _log.exception("defect", id=request_id, exc_info=error)
            return OurFault("The gateway failed to handle this request.", code="internal_error")


def has_left(request: web.Request) -> bool:
    """Whether the client has closed its connection."""
    return request.transport is None or request.transport.is_closing()


def guarded(handler: Handler) -> Handler:
    """A handler whose errors become OpenAI error objects."""

    async def handle(request: web.Request) -> web.StreamResponse:
        request_id = request_id_of(request)
        if (writes := request.app.get(WRITES)) is not None:
            writes.watch(request.transport)
        try:
            response = await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:  # the border: everything becomes an answer here
            if isinstance(error, ConnectionError) and has_left(request):
                raise
            return error_response(as_gateway_error(error, request_id), request_id)
        if not response.prepared:
            response.headers.setdefault("X-Request-ID", request_id)
        return response

    return handle
