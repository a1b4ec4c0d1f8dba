"""Who asks, who shares, and the keys made of that.

Every key is a cryptographic hash over typed, length-prefixed parts under a domain of its own,
so that equal strings in different parts, or one string split in two ways, never meet. The
tenant in a scope comes from the authenticated principal, never from a field of the request.
"""

from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Literal


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a tenant, perhaps one of its users.

    ``trusted`` may speak for other users of the tenant (a trusted proxy, or the open tenant);
    ``admin`` may see and clear other tenants.
    """

    tenant: str
    user: str | None = None
    trusted: bool = False
    admin: bool = False

    @property
    def viewer(self) -> str | None:
        """The user whose things alone are seen, counted and cleared; None: those of all users."""
        return None if self.admin else self.user


def as_user(principal: Principal, user: str | None) -> Principal:
    """``principal`` speaking for ``user``: with that user's rights and no more."""
    return principal if user == principal.user else Principal(principal.tenant, user)


@dataclass(frozen=True, slots=True)
class Scope:
    """Who shares an entry and its KV blocks: two calls meet only under equal scopes.

    ``user`` is set for kind ``user``, ``batch`` for ``batch``, ``context`` for ``shared``;
    ``edition`` then says which text the context had: one that is deleted, or given another
    text, and made again under the same id shares nothing with what it was before.
    """

    kind: Literal["tenant", "user", "shared", "batch"]
    tenant: str
    user: str | None = None
    batch: str | None = None
    context: str | None = None
    edition: str | None = None


def fingerprint(canonical: bytes) -> bytes:
    """SHA-256 of a canonical request: 32 bytes."""
    return sha256(canonical).digest()


def scope_key(scope: Scope, secret: bytes) -> bytes:
    """What the entry keys of a scope are made with: keyed BLAKE2b, 32 bytes.

    Keyed, so that a client that is shown an entry key cannot confirm by itself what was asked.
    ``secret`` may have any length.
    """
    return _keyed("kvgate scope 1", scope, secret)


def entry_key(
    scope: bytes,
    model: str,
    cache_key: str | None,
    fp: bytes | None,
    *,
    endpoint: str | None = None,
) -> bytes:
    """Where an answer lives: SHA-256, 32 bytes, over all parts. ``scope`` is its :func:`scope_key`.

    ``fp`` None leaves the fingerprint out (``match: key``); then ``endpoint`` keeps answers of
    different shapes apart, which the fingerprint does otherwise.
    """
    return sha256(
        _framed(
            "kvgate entry 2",
            scope,
            model,
            cache_key,
            fp,
            endpoint,
        )
    ).digest()


def kv_salt(scope: Scope, secret: bytes) -> str:
    """The salt of a scope's KV blocks: keyed BLAKE2b, 64 hexadecimal characters.

    Keyed, so that no client can compute or choose another's salt. ``secret`` may have any
    length.
    """
    return _keyed("kvgate salt 1", scope, secret).hex()


def _keyed(domain: str, scope: Scope, secret: bytes) -> bytes:
    key = secret if len(secret) <= blake2b.MAX_KEY_SIZE else sha256(secret).digest()
    parts = (scope.kind, scope.tenant, scope.user, scope.batch, scope.context, scope.edition)
    return blake2b(_framed(domain, *parts), key=key, digest_size=32).digest()


def public_key(key: bytes) -> str:
    """What a client sees of an entry key: its first 32 hexadecimal characters."""
    return key.hex()[:32]


def _framed(*parts: str | bytes | None) -> bytes:
    """Injective bytes for a sequence of parts: each has its type and its length in front."""
    framed: list[bytes] = []
    for part in parts:
        if part is None:
            framed.append(b"-")
        elif isinstance(part, str):
            raw = part.encode("utf-8", "surrogatepass")
            framed.append(b"s%d:%b" % (len(raw), raw))
        else:
            framed.append(b"b%d:%b" % (len(part), part))
    return b"".join(framed)
