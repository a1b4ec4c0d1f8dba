"""The header of a block, and whether bytes are the block that is asked for."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv.blob import Identity, complaint, fingerprint_of, header_bytes, salt_digest, seal

FINGERPRINT = fingerprint_of(["model", "bf16"])
BLOCK = Identity(b"k" * 32, b"p" * 32, struct.pack("<4I", 1, 2, 3, 4))
PAYLOAD = bytes(range(64))
HEADER = seal(BLOCK, PAYLOAD, fingerprint=FINGERPRINT, expires_at=math.inf)


def said(header: bytes, payload: bytes, block: Identity = BLOCK) -> str | None:
    return complaint(header, payload, block, fingerprint=FINGERPRINT)


def test_a_sealed_block_is_itself_and_its_header_has_the_length_that_was_told() -> None:
    assert said(HEADER, PAYLOAD) is None
    assert len(HEADER) == header_bytes(4)
    assert len(HEADER) % 64 == 0


@pytest.mark.parametrize("tokens", [1, 8, 32, 128])
def test_headers_have_room_for_the_tokens_of_every_block_size(tokens: int) -> None:
    block = Identity(b"k" * 32, b"p" * 32, struct.pack(f"<{tokens}I", *range(tokens)))
    header = seal(block, b"x", fingerprint=FINGERPRINT, expires_at=5.0)
    assert len(header) == header_bytes(tokens)
    assert said(header, b"x", block) is None


def test_every_flipped_bit_is_noticed() -> None:
    for at in range(len(HEADER) + len(PAYLOAD)):
        for bit in range(8):
            whole = bytearray(HEADER + PAYLOAD)
            whole[at] ^= 1 << bit
            assert said(bytes(whole[: len(HEADER)]), bytes(whole[len(HEADER) :])), (at, bit)


def test_a_block_of_other_tokens_another_parent_or_key_is_another_block() -> None:
    others = (
        Identity(b"K" * 32, BLOCK.parent, BLOCK.content),
        Identity(BLOCK.key, b"P" * 32, BLOCK.content),
        Identity(BLOCK.key, BLOCK.parent, struct.pack("<4I", 1, 2, 3, 5)),
    )
    for other in others:
        assert said(HEADER, PAYLOAD, other) == "it is another block"


def test_another_model_a_shorter_payload_and_half_a_header_are_refused() -> None:
    elsewhere = fingerprint_of(["model", "fp32"])
    assert complaint(HEADER, PAYLOAD, BLOCK, fingerprint=elsewhere)
    assert said(HEADER, PAYLOAD[:-1])
    assert said(HEADER[:-1], PAYLOAD)


@given(st.lists(st.text()), st.lists(st.text()))
def test_fingerprints_are_equal_only_for_equal_parts(one: list[str], other: list[str]) -> None:
    assert (fingerprint_of(one) == fingerprint_of(other)) == (one == other)


def test_salts_are_told_apart_and_not_written_down() -> None:
    assert salt_digest("a") != salt_digest("b")
    assert len(salt_digest("")) == 16
    assert b"tenant" not in salt_digest("tenant")
