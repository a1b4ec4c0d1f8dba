"""The secret of a deployment: it keys the salts of KV blocks, and every hash that clients see.

It outlives a restart, as the KV blocks of a backend or of the engine's disk tier do. In this order it
comes from ``secrets.kv``, from the Redis that several gateways share, or from a file. The first gateway
makes what is missing: on Redis by ``SET NX``, in the file by a hard link, so that gateways that start
at the same moment agree.
"""

import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Final

import structlog

from gateway.config import Config
from gateway.config_values import SHORTEST_KEY
from gateway.store.base import StoreError
from gateway.store.disk import default_folder

FILE_NAME: Final = "kv.secret"
REDIS_KEY: Final = "kvgate:kv_secret"
REDIS_LIMIT_S: Final = 2.0
_log = structlog.get_logger("kvgate.secret")


async def kv_secret(config: Config, environ: Mapping[str, str] = os.environ) -> bytes:
    """The 32 bytes of this deployment. They last until the process ends where nothing can be kept."""
    given = config.secrets.kv
    file = None if given is not None else secret_file(config, environ)
    own = given.get_secret_value() if given is not None else _kept_in(file)
    shared = own
    if config.store.redis_url is not None:
        shared = await _shared_on_redis(config.store.redis_url, own)
    if shared != own and given is not None:
        _log.warning("secrets.kv differs from the secret on Redis; set the same for all gateways")
        shared = own
    elif shared != own:
        _log.warning("KV secret replaced by the one on Redis", file=str(file) if file else None)
        _replace(file, shared)
    return sha256(shared.encode()).digest()


def engine_token(secret: bytes) -> str:
    """What the bundled engine wants to hear of every command: the same in all processes of a gateway."""
    return blake2b(key=secret, digest_size=32, person=b"kvgate engine").hexdigest()


def known_secret(config: Config, environ: Mapping[str, str]) -> bytes | None:
    """The 32 bytes as far as they are known here without asking Redis; nothing is made."""
    given, file = config.secrets.kv, secret_file(config, environ)
    kept = given.get_secret_value() if given is not None else ""
    if given is None and file is not None:
        with suppress(OSError, ValueError):
            kept = file.read_text("utf-8").strip()
    return sha256(kept.encode()).digest() if len(kept) >= SHORTEST_KEY else None


def secret_file(config: Config, environ: Mapping[str, str]) -> Path | None:
    """Where the secret lies: beside stored answers, else beside the engine's KV on disk, else in the
    user's cache folder.

    None if the configuration keeps nothing on disk and there is no cache folder.
    """
    if config.store.disk_path is not None:
        return Path(config.store.disk_path).expanduser() / FILE_NAME
    if config.engine_enabled() and config.engine.kv_disk.path is not None:
        return Path(config.engine.kv_disk.path).expanduser() / FILE_NAME
    folder = default_folder(environ).parent
    on_disk = any(tier.store == "disk" for tier in config.tiers.by_name().values())
    return folder / FILE_NAME if on_disk or folder.is_dir() else None


def _kept_in(file: Path | None) -> str:
    """What the file holds. It is made if there is none."""
    made = secrets.token_hex(32)
    if file is None:
        return made
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            if not file.exists():
                _write(file, made, link=True)
        kept = file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        _log.warning("KV secret not kept: it is new at each start", file=str(file), reason=reason)
        return made
    if len(kept) < SHORTEST_KEY:
        _log.warning("KV secret file holds no secret: delete it, or set secrets.kv", file=str(file))
        return made
    return kept


def _write(file: Path, text: str, *, link: bool) -> None:
    """All of it or nothing. Raises: OSError; FileExistsError with ``link`` if another was first."""
    handle, name = tempfile.mkstemp(prefix=f".{FILE_NAME}-", dir=file.parent)  # mode 0600
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(text + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        if link:
            file.hardlink_to(partial)
        else:
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _replace(file: Path | None, text: str) -> None:
    """Keep what the gateways agreed on, so that it also holds when Redis has lost it."""
    if file is not None:
        with suppress(OSError):
            _write(file, text, link=False)


async def _shared_on_redis(url: str, own: str) -> str:
    """What is on Redis. Ours if there was none, or if Redis cannot be asked."""
    from gateway.store.redis_client import (  # noqa: PLC0415 - its client is an extra
        connect,
        failing_as_store,
    )

    client = connect(url, limit_s=REDIS_LIMIT_S)
    try:
        with failing_as_store():
            if await client.set(REDIS_KEY, own, nx=True):
                return own
            shared = await client.get(REDIS_KEY)
    except StoreError as error:
        _log.warning("KV secret not shared: Redis cannot be asked", reason=str(error))
        return own
    finally:
        await client.aclose()
    return shared.decode("utf-8", "replace") if isinstance(shared, bytes) else own
