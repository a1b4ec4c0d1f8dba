"""What a receipt says."""

import pytest

from engine.kv.missed import Missed
from engine.receipt import PrefillRate, Receipt, total
from tests.kit.scripted_service import CHAT, COMPLETIONS, chat, scripted, stream


def test_a_receipt_counts_by_tier_and_values_by_the_measured_rate() -> None:
    receipt = Receipt(prompt_tokens=100, hot=32, warm=16, cold=16, moved_bytes=7)
    shown = {
        "prompt_tokens": 100,
        "hot": 32,
        "warm": 16,
        "cold": 16,
        "computed": 36,
        "moved_bytes": 7,
    }
    assert receipt.as_json(None) == shown
    assert receipt.as_json(2000.0) == {**shown, "saved_ms": 32.0}


def test_several_prompts_are_summed_and_one_explanation_is_given() -> None:
    one = Receipt(prompt_tokens=10, hot=8)
    two = Receipt(prompt_tokens=20, hot=0, missed=Missed("never_seen", 0), verified=True)
    three = Receipt(prompt_tokens=5, hot=4, cold=1, missed=Missed("diverged", 3), verified=False)
    both = total([one, two, three])
    assert (both.prompt_tokens, both.hot, both.cold) == (35, 12, 1)
    assert both.as_json(None)["missed"] == {"reason": "never_seen", "at_token": 0}
    assert both.as_json(None)["verified"] is False
    assert total([one]).verified is None


def test_the_rate_follows_real_prefill_steps_and_forgets_slowly() -> None:
    rate = PrefillRate()
    rate.saw(0, seconds=1.0)
    rate.saw(15, seconds=1.0)
    rate.saw(100, seconds=0.0)
    assert rate.tokens_per_s is None
    rate.saw(100, seconds=0.1)
    assert rate.tokens_per_s == pytest.approx(1000)
    rate.saw(100, seconds=0.05)
    assert rate.tokens_per_s == pytest.approx(1200)


async def test_each_answer_comes_with_its_receipt_streamed_or_not() -> None:
    async with scripted() as one:
        one.engine.prefill_rate.tokens_per_s = 1000.0
        one.engine.prefill_rate.saw = lambda rows, *, seconds: None  # type: ignore[method-assign]
        first = (await (await one.post(CHAT, chat())).json())["kv_receipt"]
        assert (first["hot"], first["computed"], first["saved_ms"]) == (0, 19, 0.0)
        assert first["missed"] == {"reason": "never_seen", "at_token": 0}
        again = (await (await one.post(CHAT, chat())).json())["kv_receipt"]
        assert (again["hot"], again["computed"], again["saved_ms"]) == (16, 3, 16.0)
        assert "missed" not in again
        chunks = await stream(one, CHAT, chat(stream_options={"include_usage": True}))
        assert chunks[-1]["kv_receipt"] == again
        assert not any("kv_receipt" in chunk for chunk in chunks[:-1])
        prompts = {"prompt": ["abcdefghi", "abcdefghi!"], "n": 2, "max_tokens": 1}
        both = (await (await one.post(COMPLETIONS, prompts)).json())["kv_receipt"]
        assert both["prompt_tokens"] == 19, "a prompt counts once"


async def test_reasons_are_counted() -> None:
    async with scripted() as one:
        await one.post(CHAT, chat())
        await one.post(CHAT, chat())
        await one.post(CHAT, {**chat(), "kv": {"reuse": False}})
        await one.post(COMPLETIONS, {"prompt": "abc"})
        await one.post(COMPLETIONS, {"prompt": "[user]xyzw"})
        missed = (await (await one.client.get("/kv/stats")).json())["missed"]
        assert missed == {"never_seen": 1, "reuse_off": 1, "below_one_block": 1, "diverged": 1}
