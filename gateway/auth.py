"""API key to principal, and whose view a request has.

A key is hashed before it is looked up, so the time a look-up takes says nothing about how much of
a guessed key was right, and no key is held in memory. Failures are all alike: a missing, a
malformed and a wrong key differ in the words, never in the status or in what was looked at.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.config_sections import Tenant
from gateway.errors import ClientFault
from policies.directive import parse_directive
from policies.keys import Principal, as_user
from policies.plan import believed_user
from policies.rules import Limits

OPEN_TENANT = "default"
USER_HEADER: Final = "X-Cache-User"
_BARE_KEYS: Final = ("X-Api-Key", "api-key")
_LIMITS: Final = Limits()

Headers = CIMultiDict[str] | CIMultiDictProxy[str]


class Authenticator:
    """The principal of a request, by its headers.

    With no tenants every request belongs to the one open tenant: trusted to name users, and an admin,
    for the configuration allows this on loopback only.
    """

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self._open = None if tenants else Principal(OPEN_TENANT, trusted=True, admin=True)
        self._by_digest: dict[bytes, tuple[bytes, Principal]] = {}
        for tenant in tenants:
            own = Principal(
                tenant.name, user=tenant.user, trusted=tenant.trusted_proxy, admin=tenant.admin
            )
            self._by_digest |= {digest: (digest, own) for digest in tenant.api_keys}
            for user in tenant.users:
                one = Principal(tenant.name, user=user.name)
                self._by_digest |= {digest: (digest, one) for digest in user.api_keys}

    def __repr__(self) -> str:
        return f"<Authenticator {'open' if self.is_open else f'{len(self._by_digest)} keys'}>"

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return self._open is not None

    def principal(self, headers: Headers) -> Principal:
        """The owner of the key in ``headers``: the rights of a model call, whose body may name a user.

        Raises:
            ClientFault: 401 ``invalid_api_key``, without a word of the key.
        """
        if self._open is not None:
            return self._open
        digest = hashlib.sha256(_key_in(headers).encode("utf-8", "surrogateescape")).digest()
        held, principal = self._by_digest.get(digest, (b"", None))
        if not hmac.compare_digest(held, digest) or principal is None:
            raise _refused("this API key is not known here")
        return principal

    def view(self, headers: Headers) -> Principal:
        """Whose view the request has: the key's, or that of the user whom it speaks for.

        Every route but the model calls shows, counts and clears by this. A key that speaks for another
        user has that user's rights and no more.

        Raises:
            ClientFault: 401 ``invalid_api_key``.
            RequestError: 403 ``user_mismatch``, 400 for a malformed name.
        """
        principal = self.principal(headers)
        spoken = [(USER_HEADER, name) for name in headers.getall(USER_HEADER, ())]
        if not spoken:
            return principal
        directive = parse_directive(None, spoken, limits=_LIMITS)
        return as_user(principal, believed_user(directive, principal))


def _key_in(headers: Headers) -> str:
    """The one key of a request. Several headers may carry it if they agree. Raises: ClientFault 401."""
    bearers = headers.getall("Authorization", ())
    keys = {key for name in _BARE_KEYS for one in headers.getall(name, ()) if (key := one.strip())}
    for header in bearers:
        scheme, _, key = header.strip().partition(" ")
        if scheme.lower() == "bearer" and (key := key.strip()):
            keys.add(key)
    if len(keys) > 1:
        raise _refused("the headers hold different API keys: send one")
    if keys:
        return keys.pop()
    if bearers and bearers[0].strip():
        raise _refused("the Authorization header must be `Bearer <key>`")
    raise _refused("no API key: send `Authorization: Bearer <key>`, `X-Api-Key` or `api-key`")


def _refused(message: str) -> ClientFault:
    return ClientFault(message, status=401, code="invalid_api_key", param=None)
