"""API key to principal.

A key is hashed before it is looked up, so the time a look-up takes says nothing about how much of
a guessed key was right, and no key is held in memory. Failures are all alike: a missing, a
malformed and a wrong key differ in the words, never in the status or in what was looked at.
"""

import hashlib
import hmac
from collections.abc import Sequence

from gateway.config_sections import Tenant
from gateway.errors import ClientFault
from policies.keys import Principal

OPEN_TENANT = "default"


class Authenticator:
    """Who is asking, by the ``Authorization`` header.

    With no tenants everybody is the one open tenant: trusted to name users, and an admin, for the
    configuration allows this on loopback only.
    """

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self._open = None if tenants else Principal(OPEN_TENANT, trusted=True, admin=True)
        self._by_digest = {
            digest: (
                digest,
                Principal(
                    tenant.name,
                    user=tenant.user,
                    trusted=tenant.trusted_proxy,
                    admin=tenant.admin,
                ),
            )
            for tenant in tenants
            for digest in tenant.api_keys
        }

    def __repr__(self) -> str:
        return f"<Authenticator {'open' if self._open else f'{len(self._by_digest)} keys'}>"

    def principal(self, authorization: str | None) -> Principal:
        """The owner of the key in ``authorization``, the header's value or None.

        Raises:
            ClientFault: 401 ``invalid_api_key``, without a word of the key.
        """
        if self._open is not None:
            return self._open
        if not authorization:
            raise _refused("no API key: send `Authorization: Bearer <key>`")
        scheme, _, key = authorization.strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _refused("the Authorization header must be `Bearer <key>`")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        held, principal = self._by_digest.get(digest, (b"", None))
        if not hmac.compare_digest(held, digest) or principal is None:
            raise _refused("this API key is not known here")
        return principal


def _refused(message: str) -> ClientFault:
    return ClientFault(message, status=401, code="invalid_api_key", param=None)
