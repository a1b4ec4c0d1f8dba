"""Any OpenAI-compatible server as a backend, the bundled engine included.

The bundled engine (dialect ``kvgate``) is always asked for a stream: one path, reuse known
at the first token, and a plain reader folds. A foreign server is asked for what the client
asked for, so that a plain answer comes back byte for byte as the server made it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import aiohttp

from gateway import exact_json
from gateway.backends.base import Forwarded, KnownPrefix
from gateway.backends.connections import Requests
from gateway.backends.dialects import Dialect, spoken, usage_of, with_reuse
from gateway.backends.kv_words import known_prefix, lookup_wish
from gateway.backends.lanes import Lanes
from gateway.backends.retry_after import retry_after_s
from gateway.backends.waits import Timeouts, Waits
from gateway.chunks import Chunk, Json, Opening, Piece, Whole, well_formed
from gateway.errors import (
    KEY_REFUSED,
    BackendFault,
    ClientFault,
    GatewayError,
    key_refused,
    to_failed,
)
from gateway.folding import index_of
from gateway.responses import ENDS, is_response, whole_in
from gateway.sse import EventTooLarge, Parser
from gateway.trace_context import CURRENT
from policies.call import Call
from policies.eviction import Priority
from policies.outcome import Cause, Completed, Ending, Failed, Usage
from policies.plan import Plan

PATHS: Final[Mapping[str, str]] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
}
_PASSED_BACK: Final = ("x-ratelimit-", "openai-")
_NETWORK_ERRORS: Final = (aiohttp.ClientError, OSError, EventTooLarge)


class OpenAIBackend:
    """One server, addressed through ``locate``, which raises ``BackendFault`` while it is down.

    ``alone``: one tenant asks it, and nobody else. ``passes_trace``: the trace that a call belongs to
    is told to it.
    """

    def __init__(
        self,
        name: str,
        *,
        session: aiohttp.ClientSession,
        locate: Callable[[], str],
        clock: Callable[[], float],
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
        if self._lanes is None:
            return self._run(call, plan)
        return self._run_in_turn(self._lanes, call, plan)

    async def _run_in_turn(
        self, lanes: Lanes, call: Call, plan: Plan
    ) -> AsyncGenerator[Piece, None]:
        try:
            async with (
                lanes.place(plan.lane, plan.scope.tenant),
                aclosing(self._run(call, plan)) as pieces,
            ):
                async for piece in pieces:
                    yield piece
        except BackendFault as full:
            yield to_failed(full)

    async def _run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        began_s = self._clock()
        progress = _Progress()
        try:
            url = self._locate() + PATHS[call.endpoint]
            data = _encoded(spoken(self._dialect, call, plan, alone=self._alone))
            waits = Waits(
                self.name, self._limits, streamed=call.stream or self._dialect == "kvgate"
            )
            async with await waits.head(
                self._requests.send(
                    "POST", url, data=data, headers=self._said(), timeout=self._timeout
                )
            ) as response:
                if response.status != 200:
                    raise _refusal(self.name, response, await waits.whole(response.content))
                yield _opening(response.headers)
                if response.content_type == "text/event-stream":
                    async for event in _events(self.name, waits.received(response.content)):
                        waits.began()
                        progress.see(event)
                        yield Chunk(event)
                    progress.check(self.name)
                else:
                    whole = _answer_of(self.name, await waits.whole(response.content))
                    progress.see(whole)
                    yield Whole(whole)
                yield Completed(usage=progress.usage, duration_s=self._clock() - began_s)
                if not response.content.at_eof():
                    await _drain(response.content)
        except asyncio.CancelledError:
            raise
        except GatewayError as error:
            yield to_failed(error)
        except aiohttp.ConnectionTimeoutError:
            message = f"{self.name} cannot be reached in time"
            yield _failed(504, "backend_connect_timeout", message, "unreachable")
        except TimeoutError:
            message = f"{self.name} did not answer in time"
            yield _failed(504, "backend_timeout", message, "silent")
        except _NETWORK_ERRORS as error:
            code = "backend_cut" if progress.chunks else "backend_unreachable"
            message = f"{self.name} {_network_message(error)}"
            yield _failed(502, code, message, _cause(error))

    async def models(self) -> list[Json]:
        """See :meth:`gateway.backends.base.Backend.models`."""
        answer = await self.forward("GET", "/models", b"")
        if answer.status in KEY_REFUSED:
            raise key_refused(self.name, answer.status, answer.body)
        if answer.status != 200:
            raise BackendFault(f"{self.name}: no list of models", code="backend_bad_answer")
        listed = _json_object(self.name, answer.body).get("data")
        return [model for model in listed or () if isinstance(model, dict)]

    async def forward(self, method: str, path_qs: str, body: bytes) -> Forwarded:
        """See :meth:`gateway.backends.base.Backend.forward`."""
        return await self._exchange(method, self._locate() + path_qs, body)

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
        return _json_object(self.name, answer.body)

    async def _kv(self, route: str, wish: Json, complaint: str) -> Json:
        answer = await self._exchange("POST", f"{self._root()}/kv/{route}", _encoded(wish))
        if answer.status != 200:
            raise BackendFault(f"{self.name} {complaint}", code="backend_bad_answer")
        return _json_object(self.name, answer.body)

    def _said(self) -> Mapping[str, str]:
        trace = CURRENT.get() if self._passes_trace else None
        return self._headers if trace is None else {**self._headers, **trace.headers()}

    def _root(self) -> str:
        return self._locate().removesuffix("/v1")

    async def _exchange(self, method: str, url: str, body: bytes) -> Forwarded:
        try:
            async with await self._requests.send(
                method, url, data=body or None, headers=self._said(), timeout=self._timeout
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
        except _NETWORK_ERRORS as error:
            raise BackendFault(
                f"{self.name} {_network_message(error)}",
                code="backend_unreachable",
                cause=_cause(error),
            ) from error


def _encoded(body: Json) -> bytes:
    """The body as bytes. Raises: ClientFault 400 for what no JSON parser would take back."""
    try:
        return exact_json.dumps(body)
    except exact_json.JSONEncodeError as error:
        raise ClientFault("The body is nested too deep.", code="invalid_value") from error


class _Progress:
    """What has been seen of an answer, to know at its end whether it is all there."""

    __slots__ = ("chunks", "ended_choices", "open_choices", "usage")

    def __init__(self) -> None:
        self.chunks = 0
        self.usage = Usage()
        self.open_choices: set[int] = set()
        self.ended_choices: set[int] = set()

    def see(self, data: Json) -> None:
        self.chunks += 1
        if (whole := whole_in(data)) is not None:
            self.ended_choices.add(0)
            data = whole
        for choice in data.get("choices") or ():
            index = index_of(choice) or 0
            if choice.get("finish_reason"):
                self.open_choices.discard(index)
                self.ended_choices.add(index)
            elif index not in self.ended_choices:
                self.open_choices.add(index)
        if isinstance(usage := data.get("usage"), dict):
            self.usage = usage_of(usage)

    def check(self, name: str) -> None:
        if self.open_choices or not self.ended_choices:
            raise BackendFault(
                f"{name} ended its stream too early", code="backend_cut", cause="cut"
            )


def _passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    """What the client is told of the upstream's own headers; its request id beside ours."""
    told = {name: value for name, value in headers.items() if name.lower().startswith(_PASSED_BACK)}
    if (request_id := headers.get("X-Request-ID")) is not None:
        told["X-Upstream-Request-ID"] = request_id
    return told


def _opening(headers: Mapping[str, str]) -> Opening:
    hit, miss = headers.get("X-KV-Hit-Tokens", ""), headers.get("X-KV-Miss-Tokens", "")
    return Opening(
        headers=_passed_back(headers),
        hit_tokens=int(hit) if hit.isdecimal() else None,
        miss_tokens=int(miss) if miss.isdecimal() else None,
    )


async def _events(name: str, content: AsyncIterator[bytes]) -> AsyncIterator[Json]:
    """The stream's JSON events up to ``[DONE]``. Raises BackendFault on an error event or a cut."""
    parser = Parser()
    async for received in content:
        for event in parser.feed(received):
            if event.data == b"[DONE]":
                return
            data = _answer_of(name, event.data)
            yield data
            if data.get("type") in ENDS:
                return
    raise BackendFault(f"{name} ended its stream too early", code="backend_cut", cause="cut")


async def _drain(content: aiohttp.StreamReader) -> None:
    """Read to the end, so that the connection can serve again; what comes is of no interest.

    The readers have their answer by now: a server that keeps the line open holds up nobody.
    """
    with suppress(TimeoutError, *_NETWORK_ERRORS):
        async with asyncio.timeout(1.0):
            await content.read()


def _answer_of(name: str, raw: bytes) -> Json:
    """A whole answer or an event of a stream. Raises: BackendFault for an error, or nonsense."""
    data = _json_object(name, raw)
    if (error := data.get("error")) is not None and not is_response(data):
        raise _late_error(name, error)
    if not well_formed(data):
        raise BackendFault(f"{name} sent no OpenAI answer", code="backend_bad_answer")
    return with_reuse(data)


def _late_error(name: str, error: Any) -> BackendFault:
    """An error that came under status 200: in a stream, or in place of the answer."""
    detail = error if isinstance(error, dict) else {"message": str(error)}
    complete = {"type": "server_error", "param": None, "code": None, **detail}
    return BackendFault(
        str(detail.get("message") or f"{name} failed"),
        code=str(detail.get("code") or "backend_error"),
        body={"error": complete} if isinstance(detail.get("message"), str) else None,
    )


def _refusal(name: str, response: aiohttp.ClientResponse, raw: bytes) -> GatewayError:
    """The backend's own refusal, with its body as it was when that is an OpenAI error."""
    if response.status in KEY_REFUSED:
        return key_refused(name, response.status, raw)
    try:
        body = exact_json.loads_answer(raw)
    except exact_json.JSONDecodeError:
        body = None
    detail = body.get("error") if isinstance(body, dict) else None
    status = response.status if 400 <= response.status < 600 else 502
    own = isinstance(detail, dict) and isinstance(detail.get("message"), str)
    kind = ClientFault if status < 500 and status not in {408, 429} else BackendFault
    return kind(
        detail["message"] if own and isinstance(detail, dict) else f"{name} refused the request",
        code=str((detail or {}).get("code") or "backend_error") if own else "backend_refused",
        status=status,
        param=detail.get("param") if own and isinstance(detail, dict) else None,
        retry_after_s=retry_after_s(response.headers),
        body=body if own else None,
        headers=_passed_back(response.headers),
    )


def _json_object(name: str, raw: bytes) -> Json:
    try:
        value = exact_json.loads_answer(raw)
    except exact_json.JSONDecodeError as error:
        raise BackendFault(f"{name} sent no valid JSON", code="backend_bad_answer") from error
    if not isinstance(value, dict):
        raise BackendFault(f"{name} sent no JSON object", code="backend_bad_answer")
    return value


def _failed(status: int, code: str, message: str, cause: Cause) -> Ending:
    return Failed(
        status=status,
        code=code,
        message=message,
        retry_after_s=1.0,
        fault="backend",
        cause=cause,
    )


def _cause(error: BaseException) -> Cause:
    if isinstance(error, aiohttp.ClientConnectorError):
        return "unreachable"
    return "answered" if isinstance(error, EventTooLarge) else "cut"


def _network_message(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot be reached"
    if isinstance(error, EventTooLarge):
        return "sent an event over the size limit"
    return "broke off the connection"
