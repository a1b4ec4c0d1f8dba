"""Entries as bytes: exact, or refused."""

import struct
from dataclasses import replace
from hashlib import blake2b
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.base import Entry, StoreError
from gateway.store.codec import MAGIC, CodecError, decode, decode_meta, encode, encode_head
from policies.eviction import Priority
from policies.keys import Scope
from policies.rules import TierName
from tests.kit.entries import entry_of, key_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MAYBE = st.none() | TEXT
SECONDS = st.floats(allow_nan=False)
COUNT = st.integers(-(2**63), 2**63 - 1)
FULL = entry_of(
    "full",
    b'{"answer":"\xc3\xa9"}',
    scope=Scope("batch", "t", "u", "b", "c", "e"),
    cache_key="v1:ns:rest",
    tags=("x", "y"),
    batch_id="b",
    user="alice",
    context="code_review",
    status=404,
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    body = draw(st.binary(max_size=200))
    facts: dict[str, Any] = {
        "key": draw(st.binary(max_size=40)),
        "scope": Scope(
            draw(st.sampled_from(["tenant", "user", "shared", "batch"])),
            draw(TEXT),
            draw(MAYBE),
            draw(MAYBE),
            draw(MAYBE),
            draw(MAYBE),
        ),
        "tier": draw(st.sampled_from(get_args(TierName))),
        "priority": draw(st.sampled_from(get_args(Priority))),
        "tags": tuple(draw(st.lists(TEXT, max_size=3))),
    }
    facts |= {name: draw(TEXT) for name in ("model", "endpoint")}
    facts |= {name: draw(MAYBE) for name in ("cache_key", "batch_id", "user", "context")}
    facts |= {
        name: draw(SECONDS)
        for name in ("stored_at", "ttl_s", "stale_while_revalidate_s", "stale_if_error_s", "cost_s")
    }
    facts |= {name: draw(COUNT) for name in ("prompt_tokens", "completion_tokens", "status")}
    return entry_of("x", body, **facts)


@given(entries())
def test_what_was_encoded_comes_back_exact(entry: Entry) -> None:
    blob = encode(entry)
    assert decode(blob) == entry
    assert type(decode(blob).meta.tags) is tuple


@given(entries())
def test_the_head_alone_tells_what_is_known(entry: Entry) -> None:
    head = encode_head(entry)
    assert decode_meta(head) == entry.meta
    assert decode_meta(head + entry.body) == entry.meta


def test_every_flipped_bit_is_noticed() -> None:
    blob = encode(FULL)
    for at in range(len(blob) * 8):
        damaged = bytearray(blob)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(CodecError):
            decode(bytes(damaged))


def test_bytes_that_end_early_or_go_on_are_noticed() -> None:
    blob = encode(FULL)
    for length in range(len(blob)):
        with pytest.raises(CodecError):
            decode(blob[:length])
    with pytest.raises(CodecError):
        decode(blob + b"\x00")


def test_a_damaged_body_leaves_the_head_readable() -> None:
    blob = encode(FULL)
    assert decode_meta(blob[:-1] + b"?") == FULL.meta


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(CodecError):
        decode(blob)
    with pytest.raises(CodecError):
        decode(MAGIC + blob)


def test_another_version_is_refused_although_its_checks_hold() -> None:
    blob = encode(FULL)
    assert blob.startswith(MAGIC)
    with pytest.raises(CodecError, match="version"):
        decode(resealed(blob, MAGIC[:-1] + b"\x02"))
    assert decode(resealed(blob, MAGIC)) == FULL


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"warm"', b'"worm"'), (b'"medium"', b'"medium",1'), (b'["x","y"]', b"12345678"), (b"[[", b"{[")],
)  # fmt: skip
def test_texts_that_no_kvgate_writes_are_refused_although_the_checks_hold(
    old: bytes, new: bytes
) -> None:
    with pytest.raises(CodecError, match="version"):
        decode(resealed(encode(FULL).replace(old, new, 1), MAGIC, more=len(new) - len(old)))


def test_a_text_without_bytes_cannot_be_written() -> None:
    meta = replace(FULL.meta, cache_key="\ud800")
    with pytest.raises(StoreError):
        encode(Entry(meta, b""))


def test_a_key_is_found_in_its_bytes() -> None:
    assert key_of("full") in encode(FULL)


def resealed(blob: bytes, magic: bytes, *, more: int = 0) -> bytes:
    """The entry with another magic, its head longer by ``more``, and a digest that fits again."""
    key_bytes, text_bytes = struct.unpack_from("<HI", blob, 8)
    end = 38 + 72 + key_bytes + text_bytes + more
    head = magic + struct.pack("<HI", key_bytes, text_bytes + more) + blob[14:end]
    return head + blake2b(head, digest_size=16).digest() + blob[end + 16 :]
