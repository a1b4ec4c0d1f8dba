"""The kinds of value a configuration holds: sizes, durations, key digests, things to come.

Each is an annotated type for a pydantic field. Their messages never repeat the value: it may be
a secret.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr

SECONDS_PER_UNIT = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
BYTES_PER_UNIT = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
CONTEXT_TOKENS = {"short": 4096, "medium": 8192, "long": 16384}
MOST_BYTES = 2**60
MOST_SECONDS = 100 * 365 * 86400
TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})
WELL_KNOWN_KEYS = frozenset(
    {"plain", "changeme", "change-me", "secret", "password", "test", "token", "key", "none", "null",
     "sk-test", "sk-1234", "sk-xxx", "sk-your-key", "your-api-key", "your_api_key", "your-key",
     "sk-your-api-key", "<your-api-key>", "api-key", "empty", "dummy", "example"}
)  # fmt: skip
SHORTEST_KEY = 16  # characters; anything shorter can be tried out


def parse_duration(value: object) -> float:
    """``300``, ``"300"``, ``"30m"``, ``"500ms"`` in seconds."""
    wanted = "must be seconds, or a number with a unit such as 30m, 2h or 1d"
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)?", value.strip())
        if not found:
            raise ValueError(wanted)
        value = float(found[1]) * SECONDS_PER_UNIT[found[2] or "s"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(wanted)
    if not 0 <= value <= MOST_SECONDS:  # also refuses nan
        raise ValueError("must be between 0 and 100 years")
    return float(value)


def parse_size(value: object) -> int:
    """``4096``, ``"256MiB"``, ``"1GB"`` in bytes."""
    wanted = "must be a number of bytes, or a size such as 256MiB or 4GiB"
    if isinstance(value, bool):
        raise ValueError(wanted)
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B|B)?", value.strip())
        if not found:
            raise ValueError(wanted)
        value = float(found[1]) * BYTES_PER_UNIT[found[2] or "B"]
        if value != int(value):
            raise ValueError("must be a whole number of bytes")
    if not isinstance(value, int | float) or not 0 <= value <= MOST_BYTES or value != int(value):
        raise ValueError(wanted)
    return int(value)


def parse_whole(value: object) -> object:
    """Python takes ``true`` for 1; a person who writes ``port: true`` means something else."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def digest_key(value: object) -> bytes:
    """A plain API key, or ``sha256:<hex>`` of one, as the digest that is compared (32 bytes)."""
    if isinstance(value, bytes) and len(value) == 32:
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("must be a key in quotes, or sha256:<64 hex digits>")
    if value.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", value):
            raise ValueError("sha256: wants the 64 hex digits of the key's SHA-256")
        return bytes.fromhex(value[7:])
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("a key is printable ASCII without spaces; a header can carry no other")
    return hashlib.sha256(value.encode()).digest()


def weak_key(value: object) -> str | None:
    """Why a plain key is a bad one, or None."""
    if not isinstance(value, str) or value.startswith("sha256:"):
        return None
    if value.lower() in WELL_KNOWN_KEYS:
        return "a well-known placeholder is no key; anybody tries it first"
    if len(value) < SHORTEST_KEY:
        return f"shorter than {SHORTEST_KEY} characters; make one with `openssl rand -hex 24`"
    return None


def parse_secret(value: object) -> object:
    """A secret, or ``file:PATH`` of a file that holds it."""
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text in quotes, or file:PATH")
    if value.startswith("file:"):
        try:
            value = Path(value[5:]).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ValueError(f"its file cannot be read: {reason}") from None
    if len(value.strip()) < SHORTEST_KEY:
        raise ValueError(f"needs {SHORTEST_KEY} characters; make one with `openssl rand -hex 32`")
    return value.strip()


def parse_host(value: object) -> str:
    """A name or an address, with or without a port, as browsers write it into ``Host``."""
    if not isinstance(value, str) or not re.fullmatch(
        r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", value
    ):
        raise ValueError("must be a host such as kv.example.com, kv:8080 or [::1]; no scheme, no *")
    return value.lower()


def parse_origin(value: object) -> str:
    """A browser origin: scheme, host, and port where it is not the scheme's own."""
    scheme, _, host = value.partition("://") if isinstance(value, str) else ("", "", "")
    try:
        host = parse_host(host)
    except ValueError:
        host = ""
    if not host or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise ValueError("must be an origin such as https://app.example.com; no path, no *")
    standard = {"http": ":80", "https": ":443"}.get(scheme)
    return f"{scheme}://{host.removesuffix(standard) if standard else host}"


def parse_base_url(value: object) -> str:
    """An upstream's address without a slash at its end."""
    if not isinstance(value, str):
        raise ValueError("must be an address such as http://127.0.0.1:9000/v1")
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must start with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise ValueError("takes no user or password; put the key into api_key")
    if parts.query or parts.fragment:
        raise ValueError("takes no ? or #")
    _ = parts.port  # raises ValueError for a port out of range
    return value.rstrip("/")


def parse_redis_url(value: object) -> str:
    """A Redis or Valkey server; its password, if any, stands in the address."""
    if not isinstance(value, str) or not re.fullmatch(r"(rediss?|unix)://[^\s]+", value):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


def parse_auto_or_bool(value: object) -> bool | Literal["auto"]:
    """``auto``, or what YAML and shells call true and false."""
    word = str(value).strip().lower()
    if word == "auto":
        return "auto"
    if word in TRUE_WORDS | FALSE_WORDS:
        return word in TRUE_WORDS
    raise ValueError("must be auto, true or false")


def parse_auto_or_count(value: object) -> int | Literal["auto"]:
    """``auto``, or a whole number from 1 on."""
    word = str(value).strip().lower()
    if word == "auto":
        return "auto"
    if word.isascii() and word.isdigit() and 0 < int(word) < 10**6:
        return int(word)
    raise ValueError("must be auto or a whole number from 1 on")


def one_of(available: tuple[str, ...], *, later: tuple[str, ...]) -> BeforeValidator:
    """One of the words ``available``; those that ``later`` versions bring are refused as such."""
    choice = ", ".join(available)

    def check(value: object) -> object:
        if value in later:
            raise ValueError(f"not available in this version; use one of {choice}")
        if value not in available:
            raise ValueError(f"must be one of {choice}")
        return value

    return BeforeValidator(check)


def parse_context(value: object) -> object:
    """A number of tokens, or the name of a usual length."""
    if isinstance(value, str) and value in CONTEXT_TOKENS:
        return CONTEXT_TOKENS[value]
    return parse_whole(value)


def power_of_two(value: int) -> int:
    """Blocks must tile the engine's key tiles."""
    if value & (value - 1):
        raise ValueError("must be a power of two")
    return value


def not_empty(value: tuple[object, ...]) -> tuple[object, ...]:
    """Unlike ``min_length``, silent when an item was already refused."""
    if not value:
        raise ValueError("needs at least one")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
LongerThanZero = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Size = Annotated[int, BeforeValidator(parse_size)]
Whole = Annotated[int, BeforeValidator(parse_whole)]
ContextTokens = Annotated[int, BeforeValidator(parse_context)]
Text = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
KeyDigest = Annotated[bytes, PlainValidator(digest_key)]
HostName = Annotated[str, BeforeValidator(parse_host)]
Origin = Annotated[str, BeforeValidator(parse_origin)]
BaseUrl = Annotated[str, BeforeValidator(parse_base_url)]
AutoOrBool = Annotated[bool | Literal["auto"], PlainValidator(parse_auto_or_bool)]
AutoOrCount = Annotated[int | Literal["auto"], PlainValidator(parse_auto_or_count)]
Secret = Annotated[SecretStr, BeforeValidator(parse_secret)]
AtLeastOne = AfterValidator(not_empty)
RedisUrl = Annotated[str, BeforeValidator(parse_redis_url)]
