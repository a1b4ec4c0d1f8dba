"""What the dashboard shows beside the counters: backends, warm jobs, contexts, conversations.

These are asked for less often than once a second, each at its own pace and beside the frames: a
backend or a store that does not answer leaves its section as it was, with a word of why, and holds
up nothing else. No prompt and no answer is in any of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

import structlog

from gateway.analytics import Conversations
from gateway.backends.base import Backend
from gateway.backends.figures import figures
from gateway.backends.health import Health
from gateway.backends.replicas import Engines
from gateway.context_records import ContextRecords
from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.warming import WarmJobs
from gateway.warming_job import Job
from policies.contexts import Terms
from policies.rules import Rules

SHOWN: Final = 10
"""Jobs, contexts and conversations, at most."""
ANSWER_S: Final = 2.0
"""How long a backend or a store may take to be shown."""
FIRST_S: Final = 0.5
"""How long the first frame waits for what is not known yet."""
PACES_S: Final = {"jobs": 2.0, "backends": 5.0, "conversations": 5.0, "contexts": 10.0}
_log = structlog.get_logger("kvgate")


class Slow:
    """See the module's docstring. ``clock`` is monotonic, in seconds; ``now`` unix time."""

    def __init__(
        self,
        *,
        backends: Sequence[Backend],
        models: Mapping[str, Sequence[str]],
        health: Health,
        engines: Engines | None,
        jobs: WarmJobs,
        contexts: ContextRecords,
        conversations: Conversations,
        rules: Rules,
        tasks: Tasks,
        now: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._backends = backends
        self._models = models
        self._health = health
        self._engines = engines
        self._jobs = jobs
        self._contexts = contexts
        self._conversations = conversations
        self._rules = rules
        self._tasks = tasks
        self._now = now
        self._clock = clock
        self._ended: dict[tuple[str, str], dict[str, Any]] = {}
        self._said: dict[str, Any] = {}
        self._due_s: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._looks: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "jobs": self._warm_jobs,
            "backends": self._all_backends,
            "conversations": self._latest_conversations,
            "contexts": self._all_contexts,
        }

    async def sections(self) -> dict[str, Any]:
        """What is known by now; what is due is looked at meanwhile."""
        now_s = self._clock()
        for name, pace_s in PACES_S.items():
            if name not in self._looking and now_s >= self._due_s.get(name, now_s):
                self._due_s[name] = now_s + pace_s
                self._looking[name] = self._tasks.start(self._look(name), name=f"dashboard {name}")
        first = [task for name, task in self._looking.items() if name not in self._said]
        if first:
            await asyncio.wait(first, timeout=FIRST_S)
        return dict(self._said)

    async def _look(self, name: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                self._said[name] = await self._looks[name]()
        except TimeoutError:
            self._failed(name, "it took too long")
        except StoreError as error:
            self._failed(name, str(error))
        except Exception:  # noqa: BLE001 - one section's defect must not end the page
            _log.exception("dashboard section not made", section=name)
            self._failed(name, "the gateway failed; its log has the reason")
        finally:
            self._looking.pop(name, None)

    def _failed(self, name: str, reason: str) -> None:
        self._said[name] = {**self._said.get(name, {"data": []}), "error": reason[:200]}

    # ---- backends

    async def _all_backends(self) -> dict[str, Any]:
        states = self._health.states()
        views = self._engines.view() if self._engines is not None else {}
        shown: list[dict[str, Any]] = [
            {
                "name": backend.name,
                "models": [PurePath(model).name for model in self._models.get(backend.name, ())],
                "state": states.get(backend.name, "not asked yet"),
                "engine": views[backend.name].state if backend.name in views else None,
            }
            for backend in self._backends
        ]
        said = await figures(self._backends, patience_s=ANSWER_S / 2)
        for one in shown:
            kv = said[one["name"]]
            one["kv"] = kv_use(kv["kv"]) if kv.get("kv") else None
            one["error"] = kv.get("error")
        return {"data": shown}

    # ---- warm jobs

    async def _warm_jobs(self) -> dict[str, Any]:
        """The latest, and all that have not ended."""
        names = await self._jobs.names()
        self._ended = {name: self._ended[name] for name in names if name in self._ended}
        found = []
        for tenant, id_ in names:
            shown = self._ended.get((tenant, id_))
            if shown is None:
                job = await self._jobs.find(tenant, id_)
                if job is None:
                    continue
                shown = _shown_job(job)
                if job.ended and id_.startswith("warm-"):  # other names may begin anew
                    self._ended[tenant, id_] = shown
                await asyncio.sleep(0)  # reading one may take a while
            found.append(shown)
        found.sort(key=lambda job: (job["status"] == "running", job["created_at"]), reverse=True)
        return {"data": found[:SHOWN], "more": len(found[SHOWN:])}

    # ---- shared contexts and conversations

    async def _all_contexts(self) -> dict[str, Any]:
        names = sorted(await self._contexts.names())
        held = [await self._contexts.find(*name) for name in names[:SHOWN]]
        shown = [await self._shown_context(terms) for terms in held if terms is not None]
        return {"data": shown, "more": len(names[SHOWN:])}

    async def _shown_context(self, terms: Terms) -> dict[str, Any]:
        usage = await self._contexts.usage(terms)
        return {
            "id": terms.id,
            "tenant": terms.tenant,
            "priority": terms.priority,
            "ttl_s": terms.ttl_s,
            "ttl_left_s": round(await self._contexts.expires_at(terms) - self._now()),
            "allowed_users": len(terms.allowed_users),
            "used": usage.total,
            "users": len(usage.users),
        }

    async def _latest_conversations(self) -> dict[str, Any]:
        latest = self._conversations.latest(SHOWN)
        return {"data": [one.as_dict(self._rules) for one in latest]}

    def __repr__(self) -> str:
        return f"<Slow {' '.join(sorted(self._said))}>"


def _shown_job(job: Job) -> dict[str, Any]:
    """Without its questions."""
    return {
        **job.summary(),
        "tenant": job.principal.tenant,
        "patterns": sorted({item.pattern for item in job.items})[:5],
    }


def kv_use(said: Mapping[str, Any]) -> dict[str, Any]:
    """Of what an engine says of its KV cache, that which is shown; what it does not say is None."""
    blocks, sequences = _part(said, "blocks"), _part(said, "sequences")
    capacity: int | None = None
    held: int | None = None
    match blocks:
        case {"total": int(total), "free": int(free), "block_tokens": int(each)}:
            capacity, held = total * each, (total - free) * each
    return {
        "capacity_tokens": capacity,
        "held_tokens": held,
        "used_bytes": said.get("kv_used_bytes"),
        "hit_rate": said.get("hit_rate"),
        "evictions": said.get("evictions"),
        "running": sequences.get("running"),
        "waiting": sequences.get("waiting"),
        "below": {
            name: {"bytes": tier.get("bytes"), "max_bytes": tier.get("max_bytes")}
            for name, tier in _part(said, "tiers").items()
            if name != "hot" and isinstance(tier, Mapping) and tier.get("on")
        },
    }


def _part(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = said.get(name)
    return part if isinstance(part, Mapping) else {}
