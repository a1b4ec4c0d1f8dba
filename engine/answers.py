"""From token events to OpenAI's JSON: one path for streams and for plain answers.

    TokenEvent ──Choice──► Delta ──chunks()──► chat.completion.chunk, text_completion …   (stream)
                                └──Fold──────► chat.completion, text_completion           (plain)

The plain answer is a fold over the same deltas that a stream shows. No HTTP, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.errors import GenerationError
from engine.receipt import Receipt
from engine.request import Pick, TokenEvent
from engine.text.detokenizer import Detokenizer, Piece

Kind = Literal["chat", "completion"]
TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Shown:
    """One token of an answer with its log-probabilities. `start` counts characters of the answer."""

    token: int
    start: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice: text, the tokens it shows, and at the end why it ended."""

    index: int
    text: str
    shown: tuple[Shown, ...] = ()
    finish: str | None = None


@dataclass(slots=True)
class Choice:
    """One answer in the making. `echo` is the prompt's text, shown first when it was asked for.

    `token_bytes` is what a token adds to the text, `token_name` the same with special tokens written out.
    """

    index: int
    stops: Sequence[str]
    token_bytes: TokenBytes
    token_name: TokenBytes
    prompt: tuple[int, ...]
    echo: str | None = None
    generated: int = 0
    hit_tokens: int | None = None
    receipt: Receipt | None = None
    ended: bool = False
    _events: list[TokenEvent] = field(default_factory=list)
    _shown: int = 0
    _detokenizer: Detokenizer = field(init=False)

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.stops)

    def push(self, event: TokenEvent) -> Iterator[Delta]:
        """What there is to show now. Raises `GenerationError` when the engine failed this choice."""
        if event.finish in ("error", "abort"):
            raise GenerationError(event.error or "The request was aborted.")
        if self.hit_tokens is None:
            self.hit_tokens, self.receipt = event.hit_tokens, event.receipt
            if self.echo is not None:
                yield Delta(self.index, self.echo, self._prompt_shown(event.prompt_scores))
        piece = Piece("", self._shown)
        if event.token is not None:
            self.generated += 1
            self._events.append(event)
            piece = self._detokenizer.push(self.token_bytes(event.token))
        finish: str | None = event.finish
        if finish is not None and not piece.stopped:
            last = self._detokenizer.finish()
            piece = Piece(piece.text + last.text, last.shown_tokens, last.stopped)
        if piece.stopped:
            finish = "stop"
        shown = self._take_shown(piece.shown_tokens)
        self.ended = finish is not None
        if piece.text or shown or finish is not None:
            yield Delta(self.index, piece.text, shown, finish)

    def _take_shown(self, count: int) -> tuple[Shown, ...]:
        before = len(self.echo or "")
        shown = tuple(
            Shown(event.token or 0, before + start, event.logprob, event.top)
            for event, start in zip(
                self._events[self._shown : count],
                self._detokenizer.starts[self._shown : count],
                strict=True,
            )
        )
        self._shown = max(self._shown, count)
        return shown

    def _prompt_shown(self, scores: Sequence[Pick | None] | None) -> tuple[Shown, ...]:
        if scores is None:
            return ()
        shown, place = [], Detokenizer()
        for token, score in zip(self.prompt, scores, strict=True):
            place.push(self._echoed(token, place.end))
            logprob, top = (None, ()) if score is None else (score.logprob, score.top)
            shown.append(Shown(token, place.starts[-1], logprob, top))
        return tuple(shown)

    def _echoed(self, token: int, at: int) -> bytes:
        """What a prompt's token adds to the echoed text, which may write special tokens out."""
        echo, data = self.echo or "", self.token_bytes(token)
        if not data:
            name = self.token_name(token)
            return name if echo.startswith(name.decode("utf-8", "replace"), at) else b""
        if data.startswith(b" ") and not echo.startswith(" ", at):
            return data[1:]  # SentencePiece puts a space before the first word
        return data


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a whole call. A prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    hit_tokens: int

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.hit_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
            "prompt_cache_hit_tokens": self.hit_tokens,
            "prompt_cache_miss_tokens": self.prompt_tokens - self.hit_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What all JSON of one call has in common, and how a delta looks in it."""

    kind: Kind
    id: str
    created: int
    model: str
    system_fingerprint: str
    logprobs: bool
    token_bytes: TokenBytes
    token_name: TokenBytes

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice: a chat names its role before anything else."""
        if self.kind == "completion":
            return None
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Stream chunks: content first, the end in a chunk of its own."""
        if delta.text or delta.shown:
            logprobs = self._logprobs(delta.shown)
            yield self._chunk(delta.index, self._content(delta.text), logprobs)
        if delta.finish is not None:
            yield self._chunk(delta.index, self._content(""), None, delta.finish)

    def usage_chunk(self, usage: Usage, receipt: dict[str, Any]) -> dict[str, Any]:
        """The last chunk of a stream: counts, and what became of the prompt's tokens."""
        told = {"choices": [], "usage": usage.as_json(), "kv_receipt": receipt}
        return self._head(stream=True) | told

    def fold(
        self, deltas: Sequence[Delta], usage: Usage, receipt: dict[str, Any]
    ) -> dict[str, Any]:
        """The plain answer out of all deltas of all choices."""
        by_index: dict[int, list[Delta]] = {}
        for delta in deltas:
            by_index.setdefault(delta.index, []).append(delta)
        choices = []
        for index, own in sorted(by_index.items()):
            text = "".join(delta.text for delta in own)
            logprobs = self._logprobs(tuple(one for delta in own for one in delta.shown))
            message: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self.kind == "chat"
                else {"text": text}
            )
            finish = {"logprobs": logprobs, "finish_reason": own[-1].finish}
            choices.append({"index": index} | message | finish)
        told = {"choices": choices, "usage": usage.as_json(), "kv_receipt": receipt}
        return self._head(stream=False) | told

    def _head(self, *, stream: bool) -> dict[str, Any]:
        if self.kind == "completion":
            name = "text_completion"
        else:
            name = "chat.completion.chunk" if stream else "chat.completion"
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        body = content if self.kind == "completion" else {"delta": content}
        choice = {"index": index} | body | {"logprobs": logprobs, "finish_reason": finish}
        return self._head(stream=True) | {"choices": [choice]}

    def _content(self, text: str) -> dict[str, Any]:
        if self.kind == "completion":
            return {"text": text}
        return {"content": text} if text else {}

    def _logprobs(self, shown: Sequence[Shown]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.kind == "chat":
            return {"content": [self._chat_logprob(one) for one in shown], "refusal": None}
        return {
            "tokens": [self._name(one.token) for one in shown],
            "token_logprobs": [one.logprob for one in shown],
            "top_logprobs": [self._top(one.top) if one.top else None for one in shown],
            "text_offset": [one.start for one in shown],
        }

    def _top(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """The alternatives by name; tokens of one name are told apart by their ids, as vLLM does."""
        named: dict[str, float] = {}
        for token, logprob in top:
            name = self._name(token)
            named[_numbered(token) if name in named else name] = logprob
        return named

    def _chat_logprob(self, shown: Shown) -> dict[str, Any]:
        top = [self._entry(token, logprob) for token, logprob in shown.top]
        return self._entry(shown.token, shown.logprob) | {"top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        """`bytes` is null for a token that adds nothing to the text."""
        data = list(self.token_bytes(token)) or None
        return {"token": self._name(token), "logprob": logprob, "bytes": data}

    def _name(self, token: int) -> str:
        """A token in words: half a character is written in bytes, as OpenAI's two endpoints do."""
        data = self.token_name(token)
        try:
            return data.decode() or _numbered(token)
        except UnicodeDecodeError:
            prefix = "bytes:" if self.kind == "completion" else ""
            return prefix + data.decode("utf-8", "backslashreplace")


def _numbered(token: int) -> str:
    return f"token_id:{token}"
