"""How an answer ended, and what became of a call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from policies.explain import Difference
from policies.record import record
from policies.rules import TierName

Level = Literal["response", "semantic", "prefix", "negative", "none"]
Errand = Literal["warming", "revalidation"]
"""What is computed though no user waits for it."""
Cause = Literal["answered", "unreachable", "cut", "silent", "refused_key", "not_asked"]
"""What a failure says about the backend.

- ``answered``: the backend answered with an error. It is alive.
- ``unreachable``: there was no connection, so the backend has no work from the call.
- ``cut``: the connection broke after the request was sent. The backend may have computed.
- ``silent``: the backend did not answer in time.
- ``refused_key``: the backend refused the operator's key or account. No client can mend that.
- ``not_asked``: the gateway itself sent nothing: its own queue is full, or its engine is starting.
"""
# Why a request went on to a backend, in the words of RFC 9211 section 2.2.
Forwarded = Literal["uri-miss", "stale", "bypass", "request", "partial"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; ``hit_tokens`` of the prompt were found in the backend's KV cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    hit_tokens: int = 0

    @property
    def miss_tokens(self) -> int:
        """Prompt tokens that had to be computed."""
        return max(0, self.prompt_tokens - self.hit_tokens)


@dataclass(frozen=True, slots=True)
class Completed:
    """The backend gave a whole answer; ``duration_s`` is what it took to compute."""

    usage: Usage
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No answer, and whose fault that is.

    ``body`` is the backend's own error object, ``headers`` what it said beside it, if any.
    ``beyond_key``: the backend was told more than the entry's key covers, or another one might have
    been asked. The next caller with the same key may not meet this failure.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    fault: Literal["client", "backend", "ours"]
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    cause: Cause = "answered"
    words: str | None = field(default=None, repr=False)
    """The backend's own words where the client must not read them. They are for the log."""
    beyond_key: bool = field(default=False, compare=False)  # of remembering it, not of the failure


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Nobody read on; the work was stopped."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another process, or a more urgent flight, computes it: look again for the answer."""


Ending = Completed | Failed | Abandoned | Elsewhere


@record
class Outcome:
    """What became of a call: all that headers, log and metrics need to know.

    A stream's opening headers are rendered from an outcome made before its ending is known, its
    last chunk from a second one. ``hit`` says that the response level answered, or that the
    backend reused at least one KV block. ``age_s`` and ``ttl_left_s`` are set when a stored
    answer was served; on a miss ``ttl_left_s`` is what the new entry gets at most, None when none is
    kept. ``forwarded`` is None when no backend was asked, and ``partial`` when one was asked for
    some of several inputs. ``key`` is the public key.
    ``fallback`` is the model that answered in place of the one asked for.
    ``detail`` is a word for Cache-Status when something went wrong on our side of the cache.
    """

    level: Level = "none"
    hit: bool = False
    stored: bool = False
    collapsed: bool = False
    stale: bool = False
    forwarded: Forwarded | None = None
    key: str
    tier: TierName
    age_s: float | None = None
    ttl_left_s: float | None = None
    tokens_saved: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    miss_tokens: int = 0
    completion_tokens: int = 0
    miss_reason: str | None = None
    difference: Difference | None = None
    store_error: bool = False
    detail: str | None = None
    backend: str | None = None
    fallback: str | None = None
    status: int = 200
    debug: str | None = None
