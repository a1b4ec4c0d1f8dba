"""Any OpenAI-compatible server as a backend, the bundled engine included.

The bundled engine (dialect ``kvgate``) is always asked for a stream: one path, reuse known
at the first token, and a plain reader folds. A foreign server is asked for what the client
asked for, so that a plain answer comes back byte for byte as the server made it.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Final

import aiohttp

from gateway import exact_json
from gateway.backends.answers import Progress, json_object, read
from gateway.backends.base import Forwarded, KnownPrefix
from gateway.backends.connections import NETWORK_ERRORS, Requests, cause_of, why_broken
from gateway.backends.dialects import (
    ASKS_USAGE,
    HEALTH_ROUTES,
    Dialect,
    is_beyond_key,
    spoken,
    usage_of,
)
from gateway.backends.kv_words import known_prefix, lookup_wish
from gateway.backends.lanes import Lanes
from gateway.backends.refusals import passed_back, refused
from gateway.backends.waits import Timeouts, Waits
from gateway.chunks import Chunk, Comment, Json, Opening, Piece
from gateway.errors import (
    KEY_REFUSED,
    BackendFault,
    ClientFault,
    GatewayError,
    key_refused,
    to_failed,
)
from gateway.off_loop import ABOVE_BYTES, off_loop
from gateway.trace_context import CURRENT
from policies.call import Call
from policies.eviction import Priority
from policies.kv import KvTerms
from policies.outcome import Cause, Completed, Ending, Failed
from policies.plan import Plan

PATHS: Final[Mapping[str, str]] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
}
_CHECK: Final = {"User-Agent": "kvgate-check", "Connection": "close"}


class OpenAIBackend:
    """One server, addressed through ``locate``, which raises ``BackendFault`` while it is down.

    ``alone``: one tenant asks it, and nobody else. ``passes_trace``: the trace that a call belongs to
    is told to it. ``clock`` is monotonic, ``now`` unix time: a wait told as a date is measured by it.
    """

    def __init__(
        self,
        name: str,
        *,
        session: aiohttp.ClientSession,
        locate: Callable[[], str],
        clock: Callable[[], float],
        now: Callable[[], float] | None = None,
        api_key: str | None = None,
        dialect: Dialect = "generic",
        alone: bool = True,
        timeouts: Timeouts | None = None,
        lanes: Lanes | None = None,
        passes_trace: bool = True,
    ) -> None:
        self.name = name
        self._passes_trace = passes_trace
        self._requests = Requests(session, clock)
        self._locate = locate
        self._clock = clock
        self._now = now
        self._takes_usage: bool | None = None  # not known before a stream was asked for its usage
        self._api_key = api_key
        self._dialect = dialect
        self._alone = alone
        self._lanes = lanes
        self._limits = limits = timeouts or Timeouts()
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_s, sock_read=limits.read_s
        )
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def __repr__(self) -> str:
        return f"<OpenAIBackend {self.name} {self._dialect}>"

    def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """See :meth:`gateway.backends.base.Backend.run`."""
        if (
            not plan.reuse_prefix
        ):  # no-store: a salt that no other call has, so nothing is found again
            plan = replace(plan, salt=secrets.token_hex(16), kv=KvTerms())
        if self._lanes is None:
            return self._run(call, plan)
        return self._run_in_turn(self._lanes, call, plan)

    async def _run_in_turn(
        self, lanes: Lanes, call: Call, plan: Plan
    ) -> AsyncGenerator[Piece, None]:
        came_s = self._clock()
        try:
            async with (
                lanes.place(plan.lane, plan.scope.tenant),
                aclosing(self._run(call, plan)) as pieces,
            ):
                queued_s = self._clock() - came_s
                async for piece in pieces:
                    yield replace(piece, queued_s=queued_s) if isinstance(piece, Opening) else piece
        except BackendFault as full:
            yield to_failed(full)

    async def _run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        began_s = self._clock()
        progress = Progress(call)
        try:
            waits = Waits(
                self.name, self._limits, streamed=call.stream or self._dialect == "kvgate"
            )
            async with await self._asked(call, plan, waits) as response:
                yield _opening(response.headers)
                declared = response.content_type == "text/event-stream"
                received = waits.received(response.content)
                async for piece in read(self.name, received, progress, declared=declared):
                    if not isinstance(piece, Comment):
                        waits.began(flows=isinstance(piece, Chunk) and _flows(piece.data))
                    yield piece
                yield Completed(usage=progress.usage, duration_s=self._clock() - began_s)
                if not response.content.at_eof():
                    await _drain(response.content)
        except asyncio.CancelledError:
            raise
        except GatewayError as error:
            sent = spoken(self._dialect, call, plan, alone=self._alone)
            beyond_key = plan.may_store and is_beyond_key(self._dialect, sent, call, plan)
            yield replace(to_failed(error), beyond_key=beyond_key)
        except aiohttp.ConnectionTimeoutError:
            message = f"{self.name} cannot be reached in time"
            yield _failed(504, "backend_connect_timeout", message, "unreachable")
        except TimeoutError:
            message = f"{self.name} did not answer in time"
            yield _failed(504, "backend_timeout", message, "silent")
        except NETWORK_ERRORS as error:
            code = "backend_cut" if progress.chunks else "backend_unreachable"
            message = f"{self.name} {why_broken(error)}"
            yield _failed(502, code, message, cause_of(error))

    async def _asked(self, call: Call, plan: Plan, waits: Waits) -> aiohttp.ClientResponse:
        """The head of an answer under a status of success. Raises: GatewayError, network errors."""
        takes_usage = self._takes_usage is not False
        body = spoken(self._dialect, call, plan, alone=self._alone, takes_usage=takes_usage)
        asks_usage = self._dialect != "kvgate" and body.get("stream_options") == ASKS_USAGE
        response, refusal = await self._answered(call, body, waits)
        if refusal is None:
            self._takes_usage = self._takes_usage or asks_usage or None
            return response
        added = "stream_options" not in call.body
        if self._takes_usage is None and asks_usage and _may_mean_usage(refusal, added=added):
            del body["stream_options"]
            response, refusal = await self._answered(call, body, waits)
            if refusal is None:
                self._takes_usage = False
                return response
        raise refusal

    async def _answered(
        self, call: Call, body: Json, waits: Waits
    ) -> tuple[aiohttp.ClientResponse, GatewayError | None]:
        response = await waits.head(
            self._requests.send(
                "POST",
                self._locate() + PATHS[call.endpoint],
                data=await _encoded_call(call, body),
                headers=self._said(),
                timeout=self._timeout,
            )
        )
        if 200 <= response.status < 300:
            return response, None
        async with response:
            raw = await waits.whole(response.content)
        now = None if self._now is None else self._now()
        return response, refused(
            self.name, response.status, raw, response.headers, now=now, secret=self._api_key
        )

    async def models(self) -> list[Json]:
        """See :meth:`gateway.backends.base.Backend.models`."""
        answer = await self.forward("GET", "/models", b"")
        if answer.status in KEY_REFUSED:
            raise key_refused(self.name, answer.status, answer.body)
        if answer.status != 200:
            raise BackendFault(f"{self.name}: no list of models", code="backend_bad_answer")
        listed = json_object(self.name, answer.body).get("data")
        return [model for model in listed or () if isinstance(model, dict)]

    async def forward(self, method: str, path_qs: str, body: bytes) -> Forwarded:
        """See :meth:`gateway.backends.base.Backend.forward`."""
        return await self._exchange(method, self._locate() + path_qs, body)

    async def check_health(self) -> Forwarded | None:
        """See :meth:`gateway.backends.checks.Checked.check_health`."""
        route = HEALTH_ROUTES.get(self._dialect)
        if route is None:
            return None
        return await self._exchange("GET", self._root() + route, b"", _CHECK)

    async def check(self, path: str) -> Forwarded:
        """See :meth:`gateway.backends.checks.Checked.check`."""
        return await self._exchange("GET", self._locate() + path, b"", _CHECK)

    async def invalidate_kv(self, salt: str | None) -> int:
        """See :meth:`gateway.backends.base.Backend.invalidate_kv`."""
        if self._dialect != "kvgate":
            return 0
        wish = {"all": True} if salt is None else {"salt": salt}
        return int((await self._kv("invalidate", wish, "kept its KV")).get("tokens", 0))

    async def prefill_kv(
        self, messages: Sequence[Mapping[str, Any]], *, salt: str, priority: Priority, ttl_s: float
    ) -> int:
        """See :meth:`gateway.backends.base.Prefills.prefill_kv`."""
        if self._dialect != "kvgate":
            return 0
        kv = {"salt": salt, "priority": priority, "ttl_s": ttl_s, "lane": "warm"}
        wish = {"messages": list(messages), "kv": kv}
        usage = (await self._kv("prefill", wish, "prefilled nothing")).get("usage")
        return usage_of(usage).prompt_tokens if isinstance(usage, dict) else 0

    async def lookup_kv(self, call: Call, plan: Plan) -> KnownPrefix | None:
        """See :meth:`gateway.backends.base.LooksUp.lookup_kv`."""
        wish = lookup_wish(call, plan)
        if self._dialect != "kvgate" or wish is None:
            return None
        said = await self._kv("lookup", wish, "looked up nothing")
        return known_prefix(self.name, said)

    async def kv_stats(self) -> Json | None:
        """See :meth:`gateway.backends.base.Backend.kv_stats`."""
        if self._dialect != "kvgate":
            return None
        answer = await self._exchange("GET", self._root() + "/kv/stats", b"")
        return json_object(self.name, answer.body)

    async def _kv(self, route: str, wish: Json, complaint: str) -> Json:
        answer = await self._exchange("POST", f"{self._root()}/kv/{route}", _encoded(wish))
        if answer.status != 200:
            raise BackendFault(f"{self.name} {complaint}", code="backend_bad_answer")
        return json_object(self.name, answer.body)

    def _said(self) -> Mapping[str, str]:
        trace = CURRENT.get() if self._passes_trace else None
        return self._headers if trace is None else {**self._headers, **trace.headers()}

    def _root(self) -> str:
        return self._locate().removesuffix("/v1")

    async def _exchange(
        self, method: str, url: str, body: bytes, more: Mapping[str, str] | None = None
    ) -> Forwarded:
        headers = self._said() if more is None else {**self._said(), **more}
        try:
            async with await self._requests.send(
                method, url, data=body or None, headers=headers, timeout=self._timeout
            ) as response:
                return Forwarded(
                    status=response.status,
                    headers={"Content-Type": response.headers.get("Content-Type", "")},
                    body=await response.read(),
                )
        except TimeoutError as error:
            raise BackendFault(
                f"{self.name} did not answer in time",
                code="backend_timeout",
                status=504,
                cause="silent",
            ) from error
        except NETWORK_ERRORS as error:
            raise BackendFault(
                f"{self.name} {why_broken(error)}",
                code="backend_unreachable",
                cause=cause_of(error),
            ) from error


async def _encoded_call(call: Call, body: Json) -> bytes:
    if call.size_bytes > ABOVE_BYTES:
        with suppress(exact_json.JSONEncodeError):  # it says so below
            return await off_loop(call.size_bytes, exact_json.dumps_in_steps, body)
    return _encoded(body)


def _encoded(body: Json) -> bytes:
    """The body as bytes. Raises: ClientFault 400 for what no JSON parser would take back."""
    try:
        return exact_json.dumps(body)
    except exact_json.JSONEncodeError as error:
        raise ClientFault("The body is nested too deep.", code="invalid_value") from error


def _flows(event: Json) -> bool:
    """Whether the next piece is soon to come: a response is announced before the model thinks."""
    kind = event.get("type")
    return not isinstance(kind, str) or kind.endswith(".delta")


def _opening(headers: Mapping[str, str]) -> Opening:
    hit, miss = headers.get("X-KV-Hit-Tokens", ""), headers.get("X-KV-Miss-Tokens", "")
    return Opening(
        headers=passed_back(headers),
        hit_tokens=int(hit) if hit.isdecimal() else None,
        miss_tokens=int(miss) if miss.isdecimal() else None,
    )


async def _drain(content: aiohttp.StreamReader) -> None:
    """Read to the end, so that the connection can serve again; what comes is of no interest.

    The readers have their answer by now: a server that keeps the line open holds up nobody.
    """
    with suppress(TimeoutError, *NETWORK_ERRORS):
        async with asyncio.timeout(1.0):
            await content.read()


def _may_mean_usage(refusal: GatewayError, *, added: bool) -> bool:
    """Whether a refusal may be of ``stream_options``; ``added``: the gateway put it there."""
    said = f"{refusal.message} {refusal.param}"
    named = "stream_options" in said or "include_usage" in said
    return refusal.status in {400, 422} and (named or (added and refusal.param is None))


def _failed(status: int, code: str, message: str, cause: Cause) -> Ending:
    return Failed(
        status=status,
        code=code,
        message=message,
        retry_after_s=1.0,
        fault="backend",
        cause=cause,
    )
