"""The /kv routes: what they answer, and what they refuse by name."""

import asyncio
import json
from typing import Any

import pytest

from engine.kv.events import shown_salt
from tests.kit.scripted_service import CHAT, Brackets, scripted


class Picky(Brackets):
    """Takes no prompt without a question."""

    def render(self, messages: Any, **how: Any) -> str:
        return super().render(messages if len(messages) > 1 else [{"role": "alien"}], **how)


BASE = [{"role": "system", "content": "You review code."}]
QUESTION = {"role": "user", "content": "Look at this."}


async def test_a_prompt_is_retained_looked_up_and_forgotten_over_http() -> None:
    async with scripted() as one:
        body: dict[str, Any] = {"messages": BASE, "salt": "s"}
        await one.post("/kv/prefill", {"messages": BASE, "kv": {"salt": "s"}})
        kept = await (
            await one.post("/kv/retain", {**body, "pin": True, "priority": "high"})
        ).json()
        assert kept["held_tokens"] == kept["pinned_tokens"] == 24
        assert kept["runs"][0]["ttl_left_s"] is None
        asked = {"messages": [*BASE, QUESTION], "salt": "s"}
        found = await (await one.post("/kv/lookup", asked)).json()
        assert found == {
            "tokens": 54,
            "hit_tokens": 24,
            "tiers": {"hot": 24, "warm": 0, "cold": 0},
            "missed": {"reason": "never_seen", "at_token": 24},
        }
        elsewhere = {**asked, "salt": "t", "own_salts": ["s"]}
        found = await (await one.post("/kv/lookup", elsewhere)).json()
        assert found["missed"] == {"reason": "other_salt", "at_token": 0}
        gone = await (await one.post("/kv/invalidate", {**body, "from_token": 9})).json()
        assert gone == {"tokens": 16}
        assert (await (await one.post("/kv/lookup", asked)).json())["hit_tokens"] == 8
        again = await (
            await one.post("/kv/prefill", {"messages": BASE, "kv": {"salt": "s"}})
        ).json()
        assert again["kv_receipt"]["hot"] == 8
        assert again["kv_receipt"]["missed"]["reason"] == "invalidated"


async def test_a_base_is_stored_once_and_what_follows_is_each_users_own() -> None:
    async with scripted() as one:
        await one.post("/kv/prefill", {"messages": BASE, "kv": {"salt": "team"}})

        async def ask(user: str, question: str) -> dict[str, Any]:
            kv = {"salt": user, "base": {"salt": "team", "messages": 1}}
            messages = [*BASE, {"role": "user", "content": question}]
            response = await one.post(CHAT, {"messages": messages, "kv": kv, "max_tokens": 1})
            receipt = (await response.json())["kv_receipt"]
            assert isinstance(receipt, dict)
            return receipt

        secret = "the very same long question"
        assert (await ask("ann", secret))["hot"] == 24
        probe = await ask("bob", secret)
        assert (probe["hot"], probe["missed"]["reason"]) == (24, "never_seen")
        assert (await ask("ann", secret))["hot"] > 24
        plain = {"messages": [*BASE, {"role": "user", "content": secret}], "salt": "bob"}
        assert (await (await one.post("/kv/lookup", plain)).json())["hit_tokens"] == 0
        based = {**plain, "base": {"salt": "team", "messages": 1}}
        assert (await (await one.post("/kv/lookup", based)).json())["hit_tokens"] > 24
        await one.post("/kv/invalidate", {"salt": "team"})
        assert (await (await one.post("/kv/lookup", based)).json())["hit_tokens"] == 0


@pytest.mark.parametrize(
    ("said", "shared"),
    [
        ({"messages": 1}, 24),
        ({"messages": 1, "characters": 8}, 16),  # [system]You revi
        ({"messages": 2}, 40),  # and the user's message is in it: "[user]Look at this." ends at 43
        ({"characters": 8}, 0),
        ({"tokens": 8}, 0),
    ],
)
async def test_a_base_ends_at_the_last_whole_block_it_has_alone(
    said: dict[str, int], shared: int
) -> None:
    async with scripted() as one:
        kv = {"salt": "own", "base": {"salt": "team", **said}}
        body = {"messages": [*BASE, QUESTION], "kv": kv, "max_tokens": 1}
        assert (await one.post(CHAT, body)).status == 200
        found = await one.post("/kv/lookup", {"messages": [*BASE, QUESTION], "salt": "team"})
        assert (await found.json())["hit_tokens"] == shared


@pytest.mark.parametrize(
    ("prompt", "said", "shared"),
    [
        ("abcdefghijkl", {"characters": 6}, 4),
        ("abcdefghijkl", {"characters": 99}, 8),
        ([9] * 12, {"tokens": 9}, 8),
        ([9] * 12, {"characters": 9}, 0),
        ("abcdefghijkl", {"messages": 1}, 0),
    ],
)
async def test_a_plain_prompts_base_is_characters_or_tokens(
    prompt: Any, said: dict[str, int], shared: int
) -> None:
    async with scripted() as one:
        body = {"prompt": prompt, "kv": {"salt": "own", "base": {"salt": "team", **said}}}
        assert (await one.post("/kv/prefill", body)).status == 200
        found = await (await one.post("/kv/lookup", {"prompt": prompt, "salt": "team"})).json()
        assert found["hit_tokens"] == shared


async def test_tools_are_the_askers_own_and_not_the_bases() -> None:
    """The template puts tools in front: then nothing is common, and nothing of them is shared."""
    async with scripted() as one:
        tools = [{"type": "function", "function": {"name": "f"}}]
        kv = {"salt": "own", "base": {"salt": "team", "messages": 1}}
        await one.post(CHAT, {"messages": [*BASE, QUESTION], "tools": tools, "kv": kv})
        assert await (await one.post("/kv/invalidate", {"salt": "team"})).json() == {"tokens": 0}


async def test_a_base_that_the_template_refuses_alone_is_no_base() -> None:
    async with scripted() as one:
        one.text.chat = Picky()
        kv = {"salt": "own", "base": {"salt": "team", "messages": 1}}
        response = await one.post(CHAT, {"messages": [*BASE, QUESTION], "kv": kv})
        assert response.status == 200
        assert await (await one.post("/kv/invalidate", {"salt": "team"})).json() == {"tokens": 0}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("retain", {}, "messages"),
        ("retain", {"pin": True, "quota_bytes": 3}, "messages"),
        ("retain", {"prompt": "abcd", "pin": "yes"}, "pin"),
        ("retain", {"prompt": "abcd", "pin_s": 1}, "pin_s"),
        ("retain", {"prompt": "abcd", "floor": "lava"}, "floor"),
        ("retain", {"prompt": "abcd", "quota_bytes": "much"}, "quota_bytes"),
        ("retain", {"prompt": "abcd", "quota_bytes": -1}, "quota_bytes"),
        ("retain", {"prompt": "abcd", "salt": 3}, "salt"),
        ("retain", {"prompt": "abcd", "base": {"salt": "b"}}, "base.messages"),
        ("retain", [], None),
        ("lookup", {"prompt": "abcd", "own_salts": "s"}, "own_salts"),
        ("lookup", {"token_ids": "abcd"}, "token_ids"),
        ("lookup", {"token_ids": []}, "token_ids"),
        ("lookup", {"token_ids": ["abcd"]}, "token_ids"),
        ("lookup", {"token_ids": [[1, 2]]}, "token_ids"),
        ("lookup", {"token_ids": [1, 99_999]}, "token_ids"),
        ("lookup", {"messages": BASE, "base": {"salt": "b", "messages": 2}}, "kv.base.messages"),
        ("prefill", {"prompt": "abcd", "kv": {"base": {}}}, "kv.base.salt"),
        ("invalidate", {"prompt": "abcd", "all": True}, "all"),
        ("invalidate", {"prompt": "abcd", "from_token": -1}, "from_token"),
        ("invalidate", {"salt": "s", "from_token": 1}, "from_token"),
    ],
)
async def test_bad_input_is_refused_by_name(path: str, body: Any, param: str | None) -> None:
    async with scripted() as one:
        assert (await one.refused(f"/kv/{path}", body))["param"] == param


async def test_the_last_message_of_a_base_must_have_a_text_to_be_cut() -> None:
    async with scripted() as one:
        parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
        kv = {"base": {"salt": "b", "messages": 1, "characters": 2}}
        error = await one.refused(CHAT, {"messages": parts, "kv": kv})
        assert error["param"] == "kv.base.characters"


async def test_a_quota_alone_needs_no_prompt() -> None:
    async with scripted() as one:
        answer = await (await one.post("/kv/retain", {"salt": "s", "quota_bytes": 5})).json()
        assert (answer["quota_bytes"], answer["tokens"], answer["runs"]) == (5, 0, [])
        answer = await (await one.post("/kv/retain", {"salt": "s", "quota_bytes": "none"})).json()
        assert answer["quota_bytes"] is None


async def test_events_are_paged_by_number() -> None:
    async with scripted() as one:
        await one.post("/kv/prefill", {"prompt": "abcdefgh", "kv": {"salt": "s"}})
        page = await (await one.client.get("/kv/events?limit=1")).json()
        assert (len(page["events"]), page["missed"], page["last"]) == (1, 0, 1)
        assert page["events"][0]["salt"] == shown_salt("s")
        page = await (await one.client.get("/kv/events?after=1&wait_s=0.5")).json()
        assert [event["seq"] for event in page["events"]] == [2]


@pytest.mark.parametrize(
    "query",
    ["after=x", "after=-1", "after=1.5", "limit=0", "limit=99999", "wait_s=61", "wait_s=nan"],
)
async def test_a_bad_query_is_refused_by_name(query: str) -> None:
    async with scripted() as one:
        response = await one.client.get(f"/kv/events?{query}")
        assert response.status == 400
        assert (await response.json())["error"]["param"] == query.partition("=")[0]


async def test_a_stream_of_events_shows_its_gap_and_goes_on() -> None:
    async with scripted() as one:
        await one.post("/kv/prefill", {"prompt": "abcdefgh"})

        def lose(scheduler: Any) -> None:
            scheduler.index.keeper.events._ring.popleft()

        await one.engine.ask(lose)
        said = {"Accept": "text/event-stream"}
        async with one.client.get("/kv/events", headers=said) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            lines = [await response.content.readline() for _ in range(6)]
            assert lines[:2] == [b"event: gap\n", b'data: {"missed":1}\n']
            assert lines[3] == b"id: 2\n"
            assert json.loads(lines[4][6:])["kind"] == "stored"
            await one.post("/kv/invalidate", {"all": True})
            async with asyncio.timeout(30):
                later = [await response.content.readline() for _ in range(3)]
            assert later[0] == b"id: 3\n"
            assert json.loads(later[1][6:])["kind"] == "invalidated"
