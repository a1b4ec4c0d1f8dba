"""The connection to Redis or Valkey as our stores use it: no retries, short waits, scripts.

A command is sent once. Who may wait how long, and what happens after a failure, is decided in one
place (``gateway.store.guarded``), not here and not in the client library.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig

from gateway.store.base import StoreError, StoreFull, StoreRefuses

MOST_CONNECTIONS: Final = 64
"""Of one process; who finds none free waits, within the time limit of its call."""


def connect(url: str, *, limit_s: float) -> Redis:
    """A client for ``url``. Nothing is sent until it is used.

    ``limit_s`` bounds connecting and every single reply.
    """
    # Nothing but commands of ours: RESP2 needs no greeting, and Valkey knows none of the rest.
    return Redis.from_pool(
        BlockingConnectionPool.from_url(
            url,
            max_connections=MOST_CONNECTIONS,
            timeout=limit_s,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=limit_s,
            socket_connect_timeout=limit_s,
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
    )


CLUSTER: Final = (
    "cluster mode",
    "do not hash to the same slot",
    "non local key",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "MOVED",
    "Hash slot not served",
)
UNKNOWN: Final = ("NOAUTH", "WRONGPASS", "Authentication required", "username-password")
REFUSED: Final = ("NOPERM", "has no permissions", "No permissions", "ACL failure")


@contextmanager
def failing_as_store() -> Iterator[None]:
    """What goes wrong between here and the server is a ``StoreError``."""
    try:
        yield
    except (OutOfMemoryError, ReadOnlyError) as error:
        raise StoreFull(f"redis: {error}") from error
    except (RedisError, OSError) as error:
        refused = isinstance(error, ResponseError) and any(word in str(error) for word in REFUSED)
        raise (StoreRefuses if refused else StoreError)(f"redis: {in_words(error)}") from error


def in_words(error: Exception) -> str:
    """What is wrong, and what an operator can do about it."""
    text = str(error)
    if isinstance(error, ClusterError) or any(word in text for word in CLUSTER):
        return "this is a Redis Cluster; store.redis_url must name a single server"
    if isinstance(error, AuthenticationError) or any(word in text for word in UNKNOWN):
        return f"the user or the password in store.redis_url is wrong ({text})"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the server's certificate is not trusted: name its CA with ssl_ca_certs ({text})"
    if any(word in text for word in REFUSED):
        return f"the user needs ~kvgate:* &kvgate:* and scripts ({text})"
    return f"{type(error).__name__}: {text}"


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to the server by its digest after its first run."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """The script with this text."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

    async def run(self, client: Redis, key: bytes, *arguments: bytes | str | float) -> Any:
        """Run it on the server, in one round trip if the server knows it. Raises: StoreError."""
        with failing_as_store():
            try:
                return await client.evalsha(self.digest, 1, key, *arguments)
            except NoScriptError:
                return await client.eval(self.text, 1, key, *arguments)
