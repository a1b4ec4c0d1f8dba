"""Every error has the same shape on the wire, and says whose fault it is."""

import pytest

from gateway.errors import (
    BackendFault,
    ClientFault,
    GatewayError,
    OurFault,
    error_body,
    from_failed,
    from_request_error,
    to_failed,
)
from policies.call import RequestError

KINDS: list[tuple[type[GatewayError], str, int]] = [
    (ClientFault, "client", 400),
    (BackendFault, "backend", 502),
    (OurFault, "ours", 500),
]


@pytest.mark.parametrize(("kind", "fault", "status"), KINDS)
def test_an_error_survives_the_way_through_a_flight(
    kind: type[GatewayError], fault: str, status: int
) -> None:
    error = kind("what happened", code="a_code", param="a.param", retry_after_s=2.0)
    ending = to_failed(error)
    assert (ending.fault, ending.status) == (fault, status)
    back = from_failed(ending)
    assert type(back) is kind
    assert vars(back) == vars(error)
    assert str(back) == "what happened"


def test_a_backends_own_error_is_passed_on_as_it_was() -> None:
    body = {"error": {"message": "m", "type": "t", "param": None, "code": 7, "extra": True}}
    error = BackendFault("m", code="7", status=429, body=body)
    assert from_failed(to_failed(error)).body() == body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (418, "api_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    body = error_body(status=status, code="c", message="m", param="p")
    assert body == {"error": {"message": "m", "type": kind, "param": "p", "code": "c"}}


def test_a_rules_refusal_is_the_clients_fault() -> None:
    refusal = RequestError("may not", code="user_mismatch", param="X-Cache-User", status=403)
    error = from_request_error(refusal)
    assert isinstance(error, ClientFault)
    assert (error.status, error.code, error.param) == (403, "user_mismatch", "X-Cache-User")
    assert error.body()["error"]["message"] == "may not"
