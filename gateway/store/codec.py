"""An entry as bytes, for stores outside this process: versioned, checksummed, data only.

Two parts, each with its own check, so that what is known about an answer can be read without
the answer::

    head   magic and version · lengths · digest of the body · numbers · key · texts · digest of the head
    body   the answer as it was given

Bytes that are foreign, of another version, cut short, too long or changed in a single bit raise
:class:`CodecError`. The digests are checks against damage, not against an attacker: whoever can
write to the store can write a valid entry.
"""

from collections.abc import Mapping
from hashlib import blake2b
from struct import Struct
from typing import Any, Final

import orjson

from gateway.store.base import Entry, StoreError
from policies.freshness import EntryMeta
from policies.keys import Scope

MAGIC: Final = b"kvgate\x00\x01"
"""The last byte is the version: raise it with every change of the layout or of ``EntryMeta``."""

_DIGEST_BYTES: Final = 16
_FRONT: Final = Struct(
    "<8sHIQ16s"
)  # magic, bytes of the key, of the texts, of the body; its digest
_NUMBERS: Final = Struct("<5d4q")
_WORDS: Final[Mapping[str, frozenset[object]]] = {
    "kind": frozenset({"tenant", "user", "shared", "batch"}),
    "tier": frozenset({"hot", "warm", "cold"}),
    "priority": frozenset({"high", "medium", "low"}),
}


class CodecError(StoreError):
    """These bytes are not an entry of this version, or no longer what was written."""


def encode(entry: Entry) -> bytes:
    """Head and body in one piece. Raises: CodecError for what has no bytes (a lone surrogate)."""
    return encode_head(entry) + entry.body


def encode_head(entry: Entry) -> bytes:
    """All but the body: what :func:`decode_meta` reads. Raises: CodecError."""
    meta, scope = entry.meta, entry.meta.scope
    try:
        texts = orjson.dumps(
            [
                [
                    scope.kind,
                    scope.tenant,
                    scope.user,
                    scope.batch,
                    scope.context,
                    scope.edition,
                ],
                meta.model,
                meta.endpoint,
                meta.tier,
                meta.priority,
                meta.cache_key,
                meta.tags,
                meta.batch_id,
                meta.user,
                meta.context,
            ]
        )
    except orjson.JSONEncodeError as error:
        raise CodecError(f"entry cannot be written: {error}") from None
    head = b"".join(
        (
            _FRONT.pack(MAGIC, len(meta.key), len(texts), len(entry.body), _digest(entry.body)),
            _NUMBERS.pack(
                meta.stored_at,
                meta.ttl_s,
                meta.stale_while_revalidate_s,
                meta.stale_if_error_s,
                meta.cost_s,
                meta.size_bytes,
                meta.prompt_tokens,
                meta.completion_tokens,
                meta.status,
            ),
            meta.key,
            texts,
        )
    )
    return head + _digest(head)


def decode(blob: bytes) -> Entry:
    """The entry that :func:`encode` was given. Raises: CodecError."""
    meta, head_bytes, body_bytes, body_digest = _head(blob)
    body = blob[head_bytes:]
    if len(body) != body_bytes or _digest(body) != body_digest:
        raise CodecError("the body is not what was written")
    return Entry(meta, body)


def decode_meta(blob: bytes) -> EntryMeta:
    """What is known about an entry, from its head alone or with any of its body. Raises: CodecError."""
    return _head(blob)[0]


def _head(blob: bytes) -> tuple[EntryMeta, int, int, bytes]:
    """The meta data; how long the head is, how long the body must be, and its digest."""
    if len(blob) < _FRONT.size:
        raise CodecError("too short for an entry")
    magic, key_bytes, text_bytes, body_bytes, body_digest = _FRONT.unpack_from(blob)
    if magic != MAGIC:
        raise CodecError("not an entry of this version")
    key_at = _FRONT.size + _NUMBERS.size
    texts_at = key_at + key_bytes
    digest_at = texts_at + text_bytes
    head_bytes = digest_at + _DIGEST_BYTES
    if len(blob) < head_bytes or _digest(blob[:digest_at]) != blob[digest_at:head_bytes]:
        raise CodecError("the head is not what was written")
    try:
        meta = _meta(
            blob[key_at:texts_at],
            _NUMBERS.unpack_from(blob, _FRONT.size),
            orjson.loads(blob[texts_at:digest_at]),
        )
    except (ValueError, TypeError) as error:  # the check held, so another program wrote it
        raise CodecError(f"not an entry of this version: {error}") from None
    return meta, head_bytes, body_bytes, body_digest


def _meta(key: bytes, numbers: tuple[Any, ...], texts: Any) -> EntryMeta:
    scope, model, endpoint, tier, priority, cache_key, tags, batch_id, user, context = texts
    kind, tenant, scope_user, scope_batch, scope_context, edition = scope
    stored_at, ttl_s, revalidate_s, on_error_s, cost_s, *counts = numbers
    size_bytes, prompt_tokens, completion_tokens, status = counts
    for name, word in (("kind", kind), ("tier", tier), ("priority", priority)):
        if word not in _WORDS[name]:
            raise ValueError(f"unknown {name}")
    return EntryMeta(
        key=key,
        scope=Scope(kind, tenant, scope_user, scope_batch, scope_context, edition),
        model=model,
        endpoint=endpoint,
        tier=tier,
        priority=priority,
        stored_at=stored_at,
        ttl_s=ttl_s,
        stale_while_revalidate_s=revalidate_s,
        stale_if_error_s=on_error_s,
        cost_s=cost_s,
        size_bytes=size_bytes,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cache_key=cache_key,
        tags=tuple(tags),
        batch_id=batch_id,
        user=user,
        context=context,
        status=status,
    )


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()
