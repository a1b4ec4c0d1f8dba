"""What became of each call: one log line, the metrics, the statistics. Off the hot path.

A finished call is only put on a list; a hundredth of a second later the list is settled in one go,
which costs a fraction of doing it call by call. Who reads the numbers settles first.

Nothing here ever holds a prompt, an answer, an API key or a token. Savings are what the
original computation took: measured seconds, counted tokens, and money by the configured
prices; ``gateway.savings`` says what of it is left when warming and renewals are paid.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.analytics import Conversations
from gateway.config import Config
from gateway.journal_file import JournalFile
from gateway.request_log import Answered, RequestLog, Visit, of_trace
from gateway.store.base import StoreError
from gateway.tally import Purpose, Statistics
from gateway.top_keys import TopKeys
from policies.freshness import EntryMeta
from policies.outcome import Completed, Errand, Outcome, Usage
from policies.plan import Plan

SETTLE_AFTER_S: Final = 0.01
MOST_UNSETTLED: Final = 64
"""So that settling never holds up the event loop for a millisecond."""


@dataclass(frozen=True, slots=True)
class Price:
    """Money per million tokens: prompt computed, prompt reused, completion."""

    miss_per_mtok: float
    hit_per_mtok: float
    output_per_mtok: float

    def of(self, usage: Usage) -> float:
        """What computing this costs, with the reuse that it had."""
        return (
            usage.miss_tokens * self.miss_per_mtok
            + usage.hit_tokens * self.hit_per_mtok
            + usage.completion_tokens * self.output_per_mtok
        ) / 1e6

    def saved(self, outcome: Outcome) -> float:
        """What the call would have cost more without caching."""
        if outcome.forwarded == "partial":
            return outcome.tokens_saved * self.miss_per_mtok / 1e6
        if outcome.collapsed:
            # Computed at the same time it would have found the same prefix.
            return self.of(
                Usage(outcome.prompt_tokens, outcome.completion_tokens, outcome.hit_tokens)
            )
        if outcome.level in {"response", "semantic"}:
            return self.of(Usage(outcome.prompt_tokens, outcome.completion_tokens))
        return outcome.hit_tokens * (self.miss_per_mtok - self.hit_per_mtok) / 1e6


def prices_of(config: Config) -> Mapping[str, Price]:
    """The configured prices by model."""
    return {
        model: Price(price.miss_per_mtok, price.hit_per_mtok, price.output_per_mtok)
        for model, price in config.prices.items()
    }


_log = structlog.get_logger("kvgate")


class Journal:
    """Takes every outcome once, after its answer has left. Belongs to one event loop."""

    def __init__(
        self,
        prices: Mapping[str, Price],
        log: RequestLog,
        conversations: Conversations | None = None,
        file: JournalFile | None = None,
    ) -> None:
        self.statistics = Statistics()
        self._file = file
        self.keys = TopKeys()
        self._conversations = conversations
        self._prices = prices
        self._log = log
        self.served: Callable[[Plan], None] = lambda _: None
        """Told of each answer that came out of the store."""
        self._unsettled: list[Visit] = []

    def note(self, visit: Visit) -> None:
        """A call was answered: the visit has its plan and its outcome."""
        self._unsettled.append(visit)
        if len(self._unsettled) == 1:
            asyncio.get_running_loop().call_later(SETTLE_AFTER_S, self.settle)
        elif len(self._unsettled) >= MOST_UNSETTLED:
            self.settle()

    def moment(self) -> int:
        """The number of what happens now, where a file keeps what happens in its order."""
        return 0 if self._file is None else next(self._file.moments)

    def settle(self) -> None:
        """Count and log what was noted."""
        visits, self._unsettled = self._unsettled, []
        answered: list[Answered] = []
        for visit in visits:
            plan, outcome = visit.plan, visit.outcome
            if plan is not None and outcome is not None:
                answered.append(Answered(visit, plan, outcome))
                if outcome.forwarded is None:
                    self.served(plan)
                if not plan.preload:  # no user asked for it: it would spoil the hit rate
                    self._count(visit, plan, outcome)
        self.keys.note(answered)
        self._log.answered(answered)
        if self._conversations is not None:
            self._conversations.note(answered)
        if self._file is not None:
            self._file.calls(answered)
            self.statistics.journal_lines = self._file.written
            self.statistics.journal_lost = self._file.lost

    async def close(self) -> None:
        """Settle, and have the file written to its end."""
        self.settle()
        if self._file is not None:
            await asyncio.to_thread(self._file.close)

    def refused(
        self,
        *,
        request_id: str,
        endpoint: str,
        status: int,
        code: str,
        seconds: float,
        trace_id: str | None = None,
    ) -> None:
        """A call ended in an error."""
        self.statistics.refused(endpoint, status)
        line = {"event": "refused", "id": request_id, "endpoint": endpoint, "status": status}
        line |= {"code": code, "ms": round(seconds * 1000, 2)}
        self._log.write([line | of_trace(trace_id)])

    def spent(self, errand: Errand, plan: Plan, ending: Completed) -> None:
        """Something was computed that no user waited for."""
        purpose = Purpose(errand, plan.tier, plan.model, plan.scope.tenant)
        price = self._prices.get(plan.model) or self._prices.get("default")
        money = 0.0 if price is None else price.of(ending.usage)
        self.statistics.spent(purpose).add(ending, money=money)

    def stored(self, meta: EntryMeta) -> None:
        """An answer was handed to the store."""
        if self._file is not None:
            self._file.stored(meta)

    def cleared(self, gone: Sequence[EntryMeta]) -> None:
        """Answers were removed because somebody said so."""
        if self._file is not None:
            self._file.cleared(gone)

    def store_failed(self, error: Exception) -> None:
        """An answer was given and could not be stored."""
        self.statistics.store_failures += 1
        if not isinstance(error, StoreError):  # those a guard reports, once for all
            _log.warning("answer not stored", error=type(error).__name__, reason=str(error)[:200])

    def left(
        self, *, request_id: str, endpoint: str, seconds: float, trace_id: str | None = None
    ) -> None:
        """The client went away before its answer was whole."""
        line = {"event": "left", "id": request_id, "endpoint": endpoint}
        self._log.write([line | {"ms": round(seconds * 1000, 2)} | of_trace(trace_id)])

    def _count(self, visit: Visit, plan: Plan, outcome: Outcome) -> None:
        level = outcome.level
        tally = self.statistics.group(
            (
                visit.endpoint,
                level,
                outcome.status,
                outcome.tier if plan.enabled else None,
                plan.model,
                plan.scope.tenant,
                outcome.miss_reason,
            )
        )
        tally.add(
            outcome,
            seconds=visit.seconds,
            seconds_saved=visit.cost_s if level in {"response", "semantic"} else 0.0,
            money=self._money(plan.model, outcome),
        )

    def _money(self, model: str, outcome: Outcome) -> float:
        price = self._prices.get(model) or self._prices.get("default")
        return 0.0 if price is None else price.saved(outcome)
