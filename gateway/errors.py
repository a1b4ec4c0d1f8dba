"""Every error that a client of the gateway can see.

::

    GatewayError            status, code, message, param, retry_after_s
    ├── ClientFault         4xx: the request must change before it can succeed
    ├── BackendFault        what the backend answered, or that it could not be reached
    └── OurFault            500: a defect of the gateway; the log has the details

``policies`` raises its own :class:`~policies.call.RequestError`; :func:`from_request_error`
turns it into a :class:`ClientFault`, so that there is one way to the wire.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from policies.call import RequestError
from policies.outcome import Cause, Failed

JSON_TYPE_BY_STATUS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    417: "invalid_request_error",
    431: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class GatewayError(Exception):
    """The base to catch; never raised itself."""

    default_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        cause: Cause = "answered",
        words: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = self.default_status if status is None else status
        self.param = param
        self.retry_after_s = retry_after_s
        self.original_body = body
        self.headers = headers or {}
        """What the backend said beside it: its rate limits, its request id."""
        self.cause: Cause = cause
        self.words = words

    def body(self) -> Mapping[str, Any]:
        """The OpenAI error object; a backend's own JSON error is passed on as it was."""
        return self.original_body or error_body(
            status=self.status, code=self.code, message=self.message, param=self.param
        )


class ClientFault(GatewayError):
    """The request is wrong, forbidden or too large."""

    default_status = 400


class BackendFault(GatewayError):
    """The backend refused, failed, timed out or is not there."""

    default_status = 502


KEY_REFUSED: Final = frozenset({401, 402, 403})
"""What a backend answers when it refuses the gateway's own key or account."""


def key_refused(name: str, status: int, raw: bytes, said: str = "") -> BackendFault:
    """The backend ``name`` refused the operator's key. ``raw`` is its answer, which may quote it.

    ``said`` are its words without any part of the key.
    """
    return BackendFault(
        f"The backend {name} refused the gateway's own key or account (HTTP {status}). "
        f"The operator must correct the api_key of {name} in backends, or the account behind it. "
        + (f"The backend says: {said}" if said else "The gateway's log has the backend's words."),
        code="backend_auth",
        headers={"X-Should-Retry": "false"},
        cause="refused_key",
        words=f"HTTP {status} {raw[:500].decode(errors='replace')}".strip(),
    )


class OurFault(GatewayError):
    """A defect of the gateway itself."""

    default_status = 500


def error_body(*, status: int, code: str, message: str, param: str | None) -> dict[str, Any]:
    """All four members that OpenAI's ``Error`` schema requires."""
    kind = JSON_TYPE_BY_STATUS.get(status, "server_error" if status >= 500 else "api_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def from_request_error(error: RequestError) -> ClientFault:
    """A rule's refusal as an HTTP error."""
    return ClientFault(error.message, code=error.code, status=error.status, param=error.param)


def from_failed(ending: Failed) -> GatewayError:
    """The error that a finished flight left for its readers."""
    kinds: dict[str, type[GatewayError]] = {
        "client": ClientFault,
        "backend": BackendFault,
        "ours": OurFault,
    }
    return kinds[ending.fault](
        ending.message,
        code=ending.code,
        status=ending.status,
        param=ending.param,
        retry_after_s=ending.retry_after_s,
        body=ending.body,
        headers=ending.headers,
        cause=ending.cause,
        words=ending.words,
    )


def to_failed(error: GatewayError) -> Failed:
    """The ending of a flight that met ``error``."""
    fault: Literal["client", "backend", "ours"] = "ours"
    if isinstance(error, ClientFault):
        fault = "client"
    elif isinstance(error, BackendFault):
        fault = "backend"
    return Failed(
        status=error.status,
        code=error.code,
        message=error.message,
        param=error.param,
        retry_after_s=error.retry_after_s,
        fault=fault,
        body=error.original_body,
        headers=error.headers,
        cause=error.cause,
        words=error.words,
    )
