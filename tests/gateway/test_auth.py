"""API keys: who is let in, as whom, and what a refusal gives away."""

import ast
import inspect

import pytest
from multidict import CIMultiDict

from gateway import auth
from gateway.auth import Authenticator
from gateway.config_sections import Tenant
from gateway.errors import ClientFault
from policies.call import RequestError
from policies.keys import Principal

KEY_A, KEY_B = "key-of-acme-0123456789", "key-of-bolt-0123456789"


def given(authorization: str | None = None, **more: str) -> CIMultiDict[str]:
    """The headers of a request."""
    headers = CIMultiDict({name.replace("_", "-"): value for name, value in more.items()})
    if authorization is not None:
        headers["Authorization"] = authorization
    return headers


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator(
        [
            Tenant.model_validate(
                {"name": "acme", "api_keys": [KEY_A, KEY_A + "2"], "user": "ann"}
            ),
            Tenant.model_validate(
                {"name": "bolt", "api_keys": [KEY_B], "trusted_proxy": True, "admin": True}
            ),
        ]
    )


def test_a_key_names_its_tenant_its_user_and_its_rights(authenticator: Authenticator) -> None:
    acme = Principal("acme", user="ann")
    assert authenticator.principal(given(f"Bearer {KEY_A}")) == acme
    assert authenticator.principal(given(f"Bearer {KEY_A}2")) == acme
    bolt = Principal("bolt", trusted=True, admin=True)
    assert authenticator.principal(given(f"Bearer {KEY_B}")) == bolt


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER ", "Bearer   ", " Bearer "])
def test_the_scheme_is_read_without_case_or_extra_spaces(
    scheme: str, authenticator: Authenticator
) -> None:
    assert authenticator.principal(given(scheme + KEY_A)).tenant == "acme"


@pytest.mark.parametrize(
    "header",
    [
        None, "", " ", "Bearer", "Bearer ", KEY_A, f"Basic {KEY_A}", "Bearer wrong",
        f"Bearer {KEY_A[:-1]}", f"Bearer {KEY_A} {KEY_B}", f"Bearer {KEY_A.upper()}",
        "Bearer \udcff\udcfe", "Bearer ключ", "Bearer " + "x" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_is_401_without_a_word_of_the_key(
    header: str | None, authenticator: Authenticator
) -> None:
    with pytest.raises(ClientFault) as caught:
        authenticator.principal(given(header))
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert KEY_A[:8] not in caught.value.message
    assert "wrong" not in caught.value.message


def test_a_digest_is_no_key(authenticator: Authenticator) -> None:
    digest = Tenant.model_validate({"name": "a", "api_keys": [KEY_A]}).api_keys[0]
    with pytest.raises(ClientFault):
        authenticator.principal(given(f"Bearer sha256:{digest.hex()}"))


@pytest.mark.parametrize("header", [None, "Bearer anything", "Basic x"])
def test_with_no_tenants_everybody_is_the_open_one(header: str | None) -> None:
    principal = Authenticator([]).principal(given(header))
    assert principal == Principal("default", user=None, trusted=True, admin=True)


def test_a_key_comes_in_any_of_three_headers(authenticator: Authenticator) -> None:
    for headers in (given(X_Api_Key=KEY_B), given(api_key=f" {KEY_B} "), given(API_KEY=KEY_B)):
        assert authenticator.principal(headers).tenant == "bolt"
    beside = given("Basic cHJveHk6cHJveHk=", X_Api_Key=KEY_B)
    assert authenticator.principal(beside).tenant == "bolt"


def test_headers_that_agree_are_one_key_and_others_are_refused(
    authenticator: Authenticator,
) -> None:
    agreed = given(f"Bearer {KEY_B}", X_Api_Key=KEY_B, api_key=KEY_B)
    assert authenticator.principal(agreed).tenant == "bolt"
    twice = given(f"Bearer {KEY_A}")
    twice.add("Authorization", f"Bearer {KEY_B}")
    for headers in (
        given(f"Bearer {KEY_A}", X_Api_Key=KEY_B),
        given(f"Bearer {KEY_B}", api_key="none"),
        given(X_Api_Key=KEY_A, api_key=KEY_B),
        twice,
    ):
        with pytest.raises(ClientFault, match="different API keys") as caught:
            authenticator.principal(headers)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_users_of_a_tenant_have_keys_of_their_own_and_no_rights_beyond_themselves() -> None:
    users = [{"name": "ann", "api_keys": [KEY_A]}, {"name": "bob", "api_keys": [KEY_B]}]
    tenant = {"name": "acme", "users": users, "trusted_proxy": True, "admin": True}
    authenticator = Authenticator([Tenant.model_validate(tenant)])
    for key, name in ((KEY_A, "ann"), (KEY_B, "bob")):
        assert authenticator.view(given(f"Bearer {key}")) == Principal("acme", user=name)
        with pytest.raises(RequestError, match="another user"):
            authenticator.view(given(f"Bearer {key}", X_Cache_User="carol"))


def test_a_key_that_speaks_for_a_user_has_that_users_view(authenticator: Authenticator) -> None:
    spoken = authenticator.view(given(f"Bearer {KEY_B}", X_Cache_User="carol"))
    assert spoken == Principal("bolt", user="carol")
    own = authenticator.view(given(f"Bearer {KEY_A}", X_Cache_User="ann"))
    assert own == Principal("acme", user="ann")
    twice = given(f"Bearer {KEY_B}", X_Cache_User="carol")
    twice.add("X-Cache-User", "dora")
    for headers in (twice, given(f"Bearer {KEY_B}", X_Cache_User="")):
        with pytest.raises(RequestError) as caught:
            authenticator.view(headers)
        assert (caught.value.status, caught.value.param) == (400, "X-Cache-User")


def test_it_shows_a_count_and_no_key(authenticator: Authenticator) -> None:
    assert repr(authenticator) == "<Authenticator 3 keys>"
    assert repr(Authenticator([])) == "<Authenticator open>"


def test_secrets_are_never_compared_with_equals() -> None:
    tree = ast.parse(inspect.getsource(auth))
    compared = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    assert not compared & {"key", "digest", "held", "authorization"}
    assert "compare_digest" in inspect.getsource(auth)
