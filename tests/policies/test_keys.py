"""policies.keys: equal parts meet, different parts never do."""

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.keys import Principal, Scope, entry_key, fingerprint, kv_salt, public_key, scope_key
from tests.policies.making import few, texts

scopes = st.builds(
    Scope,
    kind=st.sampled_from(["tenant", "user", "shared", "batch"]),
    tenant=texts,
    user=st.none() | texts,
    batch=st.none() | texts,
    context=st.none() | texts,
    edition=st.none() | texts,
)
parts = st.tuples(
    scopes, texts, st.none() | texts, st.none() | st.binary(max_size=4), st.none() | texts
)


def key(scope: Scope, model: str, cache_key: str | None, fp: bytes | None, end: Any) -> bytes:
    return entry_key(scope_key(scope, b"secret"), model, cache_key, fp, endpoint=end)


@given(one=parts, other=parts)
@few
def test_entry_keys_are_equal_only_for_equal_parts(one: Any, other: Any) -> None:
    assert (key(*one) == key(*other)) == (one == other)


@given(one=scopes, other=scopes)
@few
def test_salts_are_equal_only_for_equal_scopes(one: Scope, other: Scope) -> None:
    assert (kv_salt(one, b"secret") == kv_salt(other, b"secret")) == (one == other)


@given(text=texts)
@few
def test_one_string_in_different_parts_makes_different_keys(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    within = scope_key(Scope("tenant", "t"), b"")
    keys = {
        entry_key(scope_key(Scope("tenant", text), b""), "m", None, None),
        entry_key(scope_key(Scope("tenant", "t", user=text), b""), "m", None, None),
        entry_key(scope_key(Scope("tenant", "t", batch=text), b""), "m", None, None),
        entry_key(scope_key(Scope("tenant", "t", context=text), b""), "m", None, None),
        entry_key(scope_key(Scope("tenant", "t", edition=text), b""), "m", None, None),
        entry_key(within, "m", text, None),
        entry_key(within, "m", None, raw),
        entry_key(within, "m", None, None, endpoint=text),
    }
    assert len(keys) == 8


def test_a_string_split_in_another_place_is_another_scope() -> None:
    assert kv_salt(Scope("user", "org_1", user="2345"), b"") != kv_salt(
        Scope("user", "org_12345", user=""), b""
    )


def test_keys_have_the_promised_sizes() -> None:
    found = entry_key(scope_key(Scope("tenant", "t"), b""), "m", None, fingerprint(b"{}"))
    assert len(found) == 32
    assert fingerprint(b"{}") == sha256(b"{}").digest()
    assert public_key(found) == found.hex()[:32]
    assert len(kv_salt(Scope("tenant", "t"), b"x")) == 64


@pytest.mark.parametrize("secret", [b"", b"a", b"b", b"x" * 64, b"x" * 65, b"x" * 66])
def test_a_scope_key_depends_on_the_secret_and_is_no_salt(secret: bytes) -> None:
    scope = Scope("tenant", "t")
    assert scope_key(scope, secret) != scope_key(scope, b"another")
    assert scope_key(scope, secret).hex() != kv_salt(scope, secret)


@pytest.mark.parametrize("secret", [b"", b"a", b"b", b"x" * 64, b"x" * 65, b"x" * 66])
def test_a_salt_depends_on_the_secret(secret: bytes) -> None:
    scope = Scope("tenant", "t")
    assert kv_salt(scope, secret) != kv_salt(scope, b"the secret")
    assert kv_salt(scope, secret) == kv_salt(scope, secret)


def test_a_principal_is_trusted_with_nothing_unless_it_is_said() -> None:
    assert Principal("t") == Principal("t", user=None, trusted=False, admin=False)
