"""/kv/*: what the gateway asks of the engine beside answers.

    GET  /kv/stats        the pool, the index, the scheduler, as JSON
    POST /kv/lookup       how many tokens of this prompt are where, and why no more
    POST /kv/prefill      compute a prompt and keep its KV, generate nothing
    POST /kv/retain       priority, ttl, pin, floor, ceiling of a prompt's blocks, the quota of its salt;
                          answers what holds now, also when it is asked to change nothing
    POST /kv/invalidate   forget a salt, all, or a prompt from a token on
    GET  /kv/events       ?after=N&limit=L&wait_s=S: what was stored, evicted, moved, invalidated since;
                          with Accept: text/event-stream as a stream without end

A prompt is `messages`, `prompt` or `token_ids`, under `salt` and, if its beginning is shared, `base`
(`engine.wishes`).
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from engine.api import parse_messages, parse_prompts, parse_token_ids
from engine.call import Prompt
from engine.errors import EngineError
from engine.fields import Fields
from engine.kv.events import Page
from engine.kv_control import KvControl, Quota
from engine.service import Service
from engine.wire import SLOT, SSE, answer, event, json_of, kv_headers
from engine.wishes import (
    MOST_BYTES,
    MOST_OWN_SALTS,
    MOST_TOKENS,
    KvWish,
    parse_base,
    parse_kv,
    parse_retain,
)

MOST_EVENTS: Final = 10_000
LONGEST_WAIT_S: Final = 60.0
_FEW_EVENTS: Final = 1000


def routes() -> list[web.RouteDef]:
    """All of them."""
    return [
        web.get("/kv/stats", stats),
        web.post("/kv/lookup", lookup),
        web.post("/kv/prefill", prefill),
        web.post("/kv/retain", retain),
        web.post("/kv/invalidate", invalidate),
        web.get("/kv/events", events),
    ]


async def stats(request: web.Request) -> web.Response:
    return answer(request.app[SLOT].ready().stats())


async def lookup(request: web.Request) -> web.Response:
    service, fields = await _asked(request)
    own_salts = fields.texts("own_salts", most=MOST_OWN_SALTS)
    prompt = await _prompt(service, fields, _under(fields), add_generation_prompt=True)
    found = await service.control.lookup(prompt.tokens, prompt.salt, own_salts=own_salts)
    return answer(found.as_json())


async def prefill(request: web.Request) -> web.Response:
    service, fields = await _asked(request)
    wish = parse_kv(fields.raw("kv"), lane="warm")
    # without the words that open the answer, so that it is a beginning of the longer conversation
    prompt = await _prompt(service, fields, wish, add_generation_prompt=False)
    usage, receipt = await service.prefill(prompt, wish)
    told = receipt.as_json(service.engine.prefill_rate.tokens_per_s)
    return answer({"usage": usage.as_json(), "kv_receipt": told}, headers=kv_headers(usage))


async def retain(request: web.Request) -> web.Response:
    service, fields = await _asked(request)
    wish, quota = parse_retain(fields), _quota(fields)
    under = _under(fields)
    if quota is not None and not wish.changes and not _has_prompt(fields):
        prompt = Prompt((), under.salt)
    else:
        prompt = await _prompt(service, fields, under, add_generation_prompt=False)
    kept = await service.control.retain(prompt.tokens, prompt.salt, wish, quota=quota)
    return answer(kept.as_json())


async def invalidate(request: web.Request) -> web.Response:
    service, fields = await _asked(request)
    everything = fields.boolean("all", default=False)
    if _has_prompt(fields):
        if everything:
            fields.fail("all", "cannot be true beside a prompt")
        from_token = fields.integer("from_token", 0, MOST_TOKENS) or 0
        prompt = await _prompt(service, fields, _under(fields), add_generation_prompt=False)
        gone = await service.control.invalidate_from(
            prompt.tokens, prompt.salt, from_token=from_token
        )
        return answer({"tokens": gone})
    salt = fields.text("salt", None)
    if everything == (salt is not None):
        fields.fail("salt", "or all: true is needed, and not both", "missing_field")
    if "from_token" in fields:
        fields.fail("from_token", "needs a prompt")
    return answer({"tokens": await service.control.invalidate(salt)})


async def events(request: web.Request) -> web.StreamResponse:
    control = request.app[SLOT].ready().control
    fields = Fields({name: _number(text) for name, text in request.query.items()})
    after = fields.integer("after", 0, MOST_BYTES) or 0
    limit = fields.integer("limit", 1, MOST_EVENTS) or _FEW_EVENTS
    wait_s = fields.number("wait_s", 0, 0, LONGEST_WAIT_S)
    if "text/event-stream" in request.headers.get("Accept", ""):
        return await _follow(request, control, after, limit)
    return answer((await control.events(after, limit=limit, wait_s=wait_s)).as_json())


async def _follow(
    request: web.Request, control: KvControl, after: int, limit: int
) -> web.StreamResponse:
    """Until the reader leaves or the engine ends."""
    response = web.StreamResponse(headers=SSE)
    await response.prepare(request)
    try:
        while True:
            page = await control.events(after, limit=limit, wait_s=LONGEST_WAIT_S)
            after = page.last
            await response.write(_page(page))
    except ConnectionResetError:
        pass  # the reader has left
    except EngineError as error:
        await response.write(event(error.as_json()))
    return response


def _page(page: Page) -> bytes:
    """Events with their numbers as ids; a gap before them is an event of its own."""
    said = [b"id: %d\n%b" % (one.seq, event(one.as_json())) for one in page.events]
    if page.missed:
        said.insert(0, b"event: gap\n" + event({"missed": page.missed}))
    return b"".join(said) or b": nothing yet\n\n"


# -- what is asked -------------------------------------------------------------------------------


async def _asked(request: web.Request) -> tuple[Service, Fields]:
    service = request.app[SLOT].ready()
    return service, Fields(await json_of(request))


def _under(fields: Fields) -> KvWish:
    return KvWish(salt=fields.text("salt", "") or "", base=parse_base(fields))


def _quota(fields: Fields) -> Quota | None:
    if "quota_bytes" not in fields:
        return None
    if fields.raw("quota_bytes") == "none":
        return Quota(None)
    return Quota(fields.integer("quota_bytes", 0, MOST_BYTES))


def _has_prompt(fields: Fields) -> bool:
    return any(name in fields for name in ("messages", "prompt", "token_ids"))


async def _prompt(
    service: Service, fields: Fields, wish: KvWish, *, add_generation_prompt: bool
) -> Prompt:
    """The prompt of a /kv request: messages, a prompt, or token ids."""
    if "messages" in fields:
        messages = parse_messages(fields)
        tokens = await service.chat_tokens(messages, add_generation_prompt=add_generation_prompt)
        return Prompt(tokens, await service.chat_salt(tokens, messages, wish))
    if "token_ids" in fields:
        ids = parse_token_ids(fields, service.vocabulary)
        return Prompt(ids, await service.prompt_salt(ids, ids, wish))
    if "prompt" not in fields:
        fields.fail("messages", "or prompt or token_ids is needed", "missing_field")
    prompts = parse_prompts(fields, service.vocabulary)
    if len(prompts) > 1:
        fields.fail("prompt", "must be one prompt")
    tokens = await service.prompt_tokens(prompts[0])
    return Prompt(tokens, await service.prompt_salt(tokens, prompts[0], wish))


def _number(text: str) -> float | int | str:
    """What a query says, as JSON would: what is no number is refused by name later."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
