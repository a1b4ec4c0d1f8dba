"""The dashboard in a real browser, on a live gateway: what people see, click and hear.

Real sockets, a scripted upstream. What a number should look like is asked of the page's own
``format.js``, whose texts are tested here as well.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from openai import OpenAI
from playwright.async_api import Browser, Page, expect

from tests.kit.browser import browsing, needs_chromium
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, chat_body, json_reply
from tests.kit.served import Served
from tests.kit.service import Service, serving

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]
ADMIN, PLAIN = "kv-3f1c7a90b2d84e65", "kv-8d1c7a90b2d84e65"
TENANTS = [
    {"name": "ops", "api_keys": [ADMIN], "admin": True},
    {"name": "acme", "api_keys": [PLAIN]},
]
PATTERN = {"id": "faq", "variations": ["One?", "Two?", "Three?"], "tier": "hot"}
IN_TIME_MS = 20_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as running:
        yield running


@asynccontextmanager
async def looking(
    browser: Browser, service: Service | Served, *, key: str | None = None, **context: Any
) -> AsyncIterator[Page]:
    """A page that shows the dashboard. Whatever the page's scripts complain of fails the test."""
    wrong: list[str] = []
    opened = await browser.new_context(**context)
    opened.set_default_timeout(IN_TIME_MS)
    page = await opened.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: _note_foreign(wrong, asked.url, service.url))
    page.on("console", lambda said: wrong.append(said.text) if _complains(said) else None)
    try:
        await page.goto(f"{service.url}/dashboard")
        if key is not None:
            await page.get_by_label("API key").fill(key)
            await page.keyboard.press("Enter")
        yield page
        assert wrong == []
    finally:
        await opened.close()


def _note_foreign(wrong: list[str], url: str, home: str) -> None:
    if not url.startswith(home):
        wrong.append(f"asked {url}")


def _complains(said: Any) -> bool:
    refused = said.text.startswith("Failed to load resource")  # what some tests provoke
    return said.type in {"error", "warning"} and not refused


async def shown(page: Page, name: str, *given: Any) -> str:
    """What the page makes of a number."""
    script = "async ([name, given]) => (await import('/dashboard/format.js'))[name](...given)"
    return str(await page.evaluate(script, [name, given]))


async def stat_is(page: Page, name: str, text: str) -> None:
    await expect(page.locator(f"[data-stat={name}]")).to_have_text(text, timeout=IN_TIME_MS)


async def ready(page: Page) -> None:
    await expect(page.locator("#status")).to_have_text("Live", timeout=IN_TIME_MS)
    await expect(page.locator("#board")).to_be_visible()


async def busy(service: Service) -> None:
    """Hits, misses, a conversation, a shared context, a refusal."""
    for number in (1, 1, 1, 2, 3):
        question = [{"role": "user", "content": f"Question {number}?"}]
        wish = {"enabled": True, "cache_key": f"faq:{number}", "tier": "hot"}
        await service.chat(wish, messages=question)
    await service.chat()
    await service.chat(model="nope")
    context = {"base_prompt": "Know the book.", "allowed_users": ["ann"]}
    await service.send("PUT", "/v1/cache/contexts/handbook", context)
    await service.settled()


async def test_the_numbers_on_the_page_are_those_of_the_statistics(browser: Browser) -> None:
    async with serving() as service, looking(browser, service) as page:
        await busy(service)
        stats = (await service.send("GET", "/v1/cache/stats")).body
        assert (stats["requests"], stats["hits"]) == (6, 2)
        await ready(page)
        await stat_is(page, "requests", await shown(page, "count", stats["requests"]))
        await stat_is(page, "stored_rate", await shown(page, "share", stats["stored_rate"]))
        await stat_is(page, "reuse_rate", await shown(page, "share", stats["reuse_rate"]))
        net = stats["savings"]["net"]
        await stat_is(page, "tokens_saved", await shown(page, "count", net["tokens"]))
        await stat_is(page, "seconds_saved", await shown(page, "seconds", net["seconds"]))
        await stat_is(page, "money_saved", await shown(page, "money", net["money"]))
        await expect(page.locator("[data-note=requests]")).to_contain_text("1 failed")
        tiers = page.locator("#tiers li")
        for index, (name, tier) in enumerate(stats["tiers"].items()):
            said = tiers.nth(index)
            await expect(said).to_contain_text(name)
            await expect(said).to_contain_text(await shown(page, "bytes", tier["size_bytes"]))
            await expect(said).to_contain_text(f"{tier['entries']} entries, {tier['evictions']} ev")
        misses = page.locator("#misses li")
        assert await misses.count() == len(stats["miss_reasons"])
        for reason, count in stats["miss_reasons"].items():
            await expect(misses.filter(has_text=reason)).to_contain_text(f"{count} · ")
        stored = page.locator("#savings tr").filter(has_text="Stored answers")
        saved = stats["savings"]["response"]
        for text in (
            str(saved["calls"]),
            str(saved["tokens"]),
            await shown(page, "seconds", saved["seconds"]),
            await shown(page, "money", saved["money"]),
        ):
            await expect(stored.get_by_role("cell", name=text, exact=True).first).to_be_visible()


async def test_each_section_shows_what_is_held(browser: Browser) -> None:
    async with serving() as service:
        await busy(service)
        async with looking(browser, service) as page:
            await ready(page)
            top = page.locator("#keys tbody tr").first
            await expect(top).to_contain_text("faq:1")
            await expect(top.get_by_role("cell").nth(1)).to_have_text("2")
            await expect(page.locator("#contexts tbody tr")).to_contain_text("handbook")
            await expect(page.locator("#conversations tbody tr")).to_have_count(3)
            await expect(page.locator("#backends li")).to_contain_text("up")
            legend = page.locator("#levels-legend li").filter(has_text="Stored answer")
            await expect(legend).to_contain_text(await shown(page, "share", 2 / 6))
            await page.locator("#measure").get_by_text("Calls").click()
            await expect(legend).to_contain_text("2")
            await page.locator("#levels-table").locator("..").locator("summary").click()
            await expect(page.locator("#levels-table tbody tr").first).to_contain_text("2")
            label = await page.locator("#latency-chart").get_attribute("aria-label")
            assert label is not None
            assert "Stored, median" in label
            assert await page.locator(".chart canvas").count() == 2


async def test_a_call_is_on_the_page_a_moment_later(browser: Browser) -> None:
    async with serving() as service, looking(browser, service) as page:
        await ready(page)
        await stat_is(page, "requests", "0")
        for count in (1, 2):
            await service.chat(True)
            await service.settled()
            await stat_is(page, "requests", str(count))
        await stat_is(page, "stored_rate", await shown(page, "share", 0.5))


async def test_stored_answers_and_reused_prompts_are_two_headlines(browser: Browser) -> None:
    reused = {"prompt_tokens": 100, "completion_tokens": 4, "prompt_cache_hit_tokens": 75}
    upstream = ScriptedUpstream(json_reply({**chat_body({"model": "m"}), "usage": reused}))
    async with serving(upstream=upstream) as service, looking(browser, service) as page:
        for question in ("One?", "One?", "One?", "Two?"):
            await service.chat(True, messages=[{"role": "user", "content": question}])
        await service.settled()
        await ready(page)
        await stat_is(page, "stored_rate", await shown(page, "share", 0.5))
        stats = (await service.send("GET", "/v1/cache/stats")).body
        assert (stats["hit_rate"], stats["prompt_tokens_reused"]) == (0.75, 75)
        await stat_is(page, "reuse_rate", await shown(page, "share", stats["reuse_rate"]))
        assert await shown(page, "share", 0.75) not in await page.locator(".tiles").inner_text()


async def test_the_curve_of_answer_times_has_gaps_where_nothing_was_asked(browser: Browser) -> None:
    script = """async () => {
      const { Latency, Past } = await import('/dashboard/charts.js');
      const past = new Past({ columns: [], buckets_s: [1, 2], kept_s: 3600 });
      past.add([[1000, [1, 0, 0, 0, 2, 0]], [1140, [1, 0, 0, 0, 2, 0]]]);
      const chart = new Latency();
      chart.past = past;
      chart.show(past.steps(300));
      const [, ...series] = chart.plot.series;
      return [series.map((one) => one.spanGaps), chart.plot.data[1].filter((time) => time !== null).length];
    }"""
    async with serving() as service, looking(browser, service) as page:
        await ready(page)
        assert await page.evaluate(script) == [[False] * 4, 2]


async def test_names_that_clients_choose_are_text_and_nothing_else(browser: Browser) -> None:
    name = "<img src=x onerror=alert(1)>"
    async with serving() as service:
        for _ in range(2):
            await service.chat({"enabled": True, "cache_key": name})
        await service.settled()
        async with looking(browser, service) as page:
            await ready(page)
            await expect(page.locator("#keys tbody")).to_contain_text(name)
            assert await page.locator("#board img").count() == 0


async def test_a_warm_job_is_started_and_cancelled_by_clicking(browser: Browser) -> None:
    gate = Gate()
    upstream = ScriptedUpstream(Reply((gate,)), Reply((gate,)))
    warm = {"patterns": [PATTERN], "concurrency": 1}
    async with (
        serving(upstream=upstream, warm=warm) as service,
        looking(browser, service) as page,
    ):
        await ready(page)
        await page.get_by_role("button", name="Warm faq (3)").click()
        await gate.reached()
        await expect(page.locator("#jobs-said")).to_have_text("Started: 3 questions.")
        row = page.locator("#jobs tbody tr")
        await expect(row).to_contain_text("0 of 3")
        (job,) = (await service.send("GET", "/v1/cache/warm")).body["data"]
        assert job["status"] == "running"
        await page.get_by_role("button", name=f"Cancel warm job {job['id']}").click()
        await expect(row).to_contain_text("cancelled")
        await expect(page.locator("#jobs-said")).to_contain_text("Cancelled after 0 of 3")
        (job,) = (await service.send("GET", "/v1/cache/warm")).body["data"]
        assert job["status"] == "cancelled"
        assert await row.get_by_role("button").count() == 0


async def test_a_list_of_questions_is_warmed_to_its_end(browser: Browser) -> None:
    async with serving() as service, looking(browser, service) as page:
        await ready(page)
        await page.get_by_text("Warm a list of questions").click()
        await page.get_by_label("One question a line").fill("One?\n\n  Two?  \n")
        await page.get_by_label("Tier", exact=True).select_option("hot")
        await page.get_by_role("button", name="Start", exact=True).click()
        row = page.locator("#jobs tbody tr")
        await expect(row).to_contain_text("2 of 2: 2 answered", timeout=IN_TIME_MS)
        hit = await service.chat(True, messages=[{"role": "user", "content": "Two?"}])
        assert (hit.headers["X-Cache-Level"], hit.headers["X-Cache-Tier"]) == ("response", "hot")
        await page.get_by_label("One question a line").fill("x")
        await service.send("POST", "/v1/cache/warm", {"questions": ["x"]})  # from elsewhere
        await expect(row).to_have_count(2, timeout=IN_TIME_MS)
        assert await page.get_by_label("One question a line").input_value() == "x"


async def test_a_refused_job_says_why(browser: Browser) -> None:
    async with serving() as service, looking(browser, service) as page:
        await ready(page)
        await page.get_by_text("Warm a list of questions").click()
        await page.get_by_label("One question a line").fill("One?")
        await page.route("**/v1/cache/warm", lambda route: route.fulfill(status=403, json=_error()))
        await page.get_by_role("button", name="Start", exact=True).click()
        await expect(page.locator("#jobs-said")).to_have_text("Not started: not like this")


def _error() -> dict[str, Any]:
    return {"error": {"message": "not like this", "type": "t", "param": None, "code": "c"}}


async def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser) -> None:
    async with serving(tenants=TENANTS) as service, looking(browser, service) as page:
        field, refused = page.get_by_label("API key"), page.locator("#login-error")
        await expect(field).to_be_focused()
        await expect(page.locator("#board")).to_be_hidden()
        for key, why in (("kv-wrong", "not known here"), (PLAIN, "admin: true")):
            await field.fill(key)
            await page.get_by_role("button", name="Show the dashboard").click()
            await expect(refused).to_contain_text(why)
            await expect(page.locator("#board")).to_be_hidden()
        await field.fill(ADMIN)
        await page.keyboard.press("Enter")
        await ready(page)
        assert ADMIN not in page.url
        assert ADMIN not in await page.content()
        assert await page.evaluate("JSON.stringify([localStorage, document.cookie])") == '[{},""]'
        await page.reload()
        await ready(page)  # the tab remembers
        await page.get_by_role("button", name="Sign out").click()
        await expect(field).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
        assert ADMIN not in service.log.getvalue()


async def test_an_admin_sees_and_cancels_the_jobs_of_another_tenant(browser: Browser) -> None:
    gate = Gate()
    upstream = ScriptedUpstream(Reply((gate,)), Reply((gate,)))
    async with serving(upstream=upstream, tenants=TENANTS) as service:
        await service.send("POST", "/v1/cache/warm", {"questions": ["a", "b"]}, key=PLAIN)
        await gate.reached()
        async with looking(browser, service, key=ADMIN) as page:
            await ready(page)
            row = page.locator("#jobs tbody tr")
            await expect(row).to_contain_text("acme")
            await row.get_by_role("button", name="Cancel").click()
            await expect(row).to_contain_text("cancelled")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_follows_the_systems_colours_until_told_otherwise(
    browser: Browser, scheme: Any
) -> None:
    async with (
        serving() as service,
        looking(browser, service, color_scheme=scheme) as page,
    ):
        await ready(page)
        bright = (
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128"
        )
        assert await page.evaluate(bright) is (scheme == "light")
        theme = page.get_by_role("button", name="Theme")
        await theme.click()
        await expect(theme).to_have_accessible_name("Theme: light")
        assert await page.evaluate(bright) is True
        await theme.click()
        assert await page.evaluate(bright) is False
        await page.reload()
        await ready(page)
        await expect(theme).to_have_accessible_name("Theme: dark")
        assert await page.evaluate(bright) is False


async def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser) -> None:
    phone: Mapping[str, Any] = {"viewport": {"width": 360, "height": 780}}
    async with serving(warm={"patterns": [PATTERN]}) as service:
        await busy(service)
        long = {"enabled": True, "cache_key": "a-very-long-name-without-any-space" * 4}
        for _ in range(2):
            await service.chat(long, messages=[{"role": "user", "content": "?"}])
        await service.settled()
        async with looking(browser, service, **phone) as page:
            await ready(page)
            await expect(page.locator("#keys tbody tr")).to_have_count(2)
            assert await page.evaluate("document.documentElement.scrollWidth") == 360
            wide = await page.evaluate(
                "[...document.querySelectorAll('#board *')].filter((node) => !node.closest('.hidden, canvas, thead')"
                " && node.getBoundingClientRect().right > 361).map((node) => node.outerHTML.slice(0, 120))"
            )
            assert wide == []


async def test_everything_can_be_reached_and_used_by_keyboard(browser: Browser) -> None:
    async with (
        serving(warm={"patterns": [PATTERN]}) as service,
        looking(browser, service) as page,
    ):
        await ready(page)
        reached: list[str] = []
        active = "document.activeElement.id || document.activeElement.name || document.activeElement.textContent.trim()"
        for _ in range(40):
            await page.keyboard.press("Tab")
            reached.append(await page.evaluate(active))
            if reached[-1] == "Warm a list of questions":
                break
        assert reached[0] == "Skip to the numbers"
        order = [one for one in reached if one in {"theme", "range", "measure", "Warm faq (3)"}]
        assert order == ["theme", "range", "measure", "Warm faq (3)"]
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        assert await page.evaluate(active) == "questions"
        await page.locator("input[name=range]").first.focus()
        await page.keyboard.press("ArrowRight")
        await expect(page.locator("input[name=range][value='900']")).to_be_checked()
        await page.get_by_role("button", name="Warm faq (3)").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#jobs tbody tr")).to_contain_text("3 of 3", timeout=IN_TIME_MS)
        assert await page.evaluate(active) == "Warm faq (3)"  # the focus stayed while rows came


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_rule_of_accessible_pages_is_broken(browser: Browser, scheme: Any) -> None:
    axe = Axe()
    async with serving(tenants=TENANTS, warm={"patterns": [PATTERN]}) as service:
        for _ in range(2):
            await service.chat({"enabled": True, "cache_key": "faq:1"}, key=PLAIN)
        await service.send("POST", "/v1/cache/warm", {"pattern": "faq"}, key=ADMIN)
        await service.settled()
        async with looking(browser, service, color_scheme=scheme) as page:
            await expect(page.get_by_label("API key")).to_be_visible()
            found = await axe.run(page)
            assert not found.violations_count, found.generate_report()
            await page.get_by_label("API key").fill(ADMIN)
            await page.keyboard.press("Enter")
            await ready(page)
            await expect(page.locator("#jobs tbody tr")).to_have_count(1)
            for name in ("#levels-table", "#warm-form"):
                await page.locator(name).locator("..").locator("summary").first.click()
            found = await axe.run(page)
            assert not found.violations_count, found.generate_report()


async def test_the_kv_cache_of_the_real_engine_is_on_the_page(
    browser: Browser, kvgate: Served, client: OpenAI
) -> None:
    messages: list[Any] = [{"role": "user", "content": "Count the herons. " * 20}]
    for _ in range(2):
        await asyncio.to_thread(
            client.chat.completions.create,
            model="default",
            messages=messages,
            max_tokens=2,
            temperature=0,
        )
    async with looking(browser, kvgate) as page:
        await ready(page)
        engine = page.locator("#backends li").filter(has_text="embedded")
        await expect(engine).to_contain_text(re.compile(r"KV [1-9][\d,]* of [\d,]+ tokens"))
        await expect(engine).to_contain_text("of prompt tokens reused")
        stats = (await asyncio.to_thread(kvgate.get, "/v1/cache/stats"))[1]
        await stat_is(page, "requests", await shown(page, "count", stats["requests"]))


async def test_a_page_that_nobody_sees_lets_the_gateway_go(browser: Browser) -> None:
    hide = """(hidden) => {
      Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    async with serving() as service, looking(browser, service) as page:
        await page.clock.install()
        await page.reload()
        await ready(page)
        async with page.expect_event("requestfailed") as ended:
            await page.evaluate(hide, True)
            await page.clock.fast_forward(10_500)
        assert (await ended.value).url.endswith("/dashboard/live")
        await service.chat()
        await service.settled()
        async with page.expect_request("**/dashboard/live"):
            await page.evaluate(hide, False)
        await stat_is(page, "requests", "1")


async def test_a_gateway_that_went_away_is_found_again(browser: Browser) -> None:
    async with serving() as service, looking(browser, service) as page:
        await ready(page)
        await page.route(
            "**/dashboard/live", lambda route: route.fulfill(status=503, json=_error())
        )
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await page.reload()
        await expect(page.locator("#status")).to_contain_text("Reconnecting: not like this")
        await page.unroute("**/dashboard/live")
        await ready(page)


NUMBERS = [
    ("count", 0, "0"),
    ("count", 12345, "12,345"),
    ("count", 1234567, "1.2M"),
    ("count", -2460, "\u22122,460"),
    ("share", 0.6667, "66.7\u00a0%"),
    ("seconds", 0, "0\u00a0s"),
    ("seconds", 0.000312, "0.312\u00a0ms"),
    ("seconds", 0.25, "250\u00a0ms"),
    ("seconds", 65.04, "65\u00a0s"),
    ("seconds", -4.25, "\u22124.25\u00a0s"),
    ("seconds", 315, "5.25\u00a0min"),
    ("seconds", 86400, "24\u00a0h"),
    ("bytes", 0, "0\u00a0B"),
    ("bytes", 1536, "1.5\u00a0KiB"),
    ("bytes", 268435456, "256\u00a0MiB"),
    ("money", 0.0000042, "0.0000042"),
    ("money", 12.3456, "12.35"),
]


async def test_a_number_has_its_unit(browser: Browser) -> None:
    async with serving() as service, looking(browser, service) as page:
        said = [(name, given, await shown(page, name, given)) for name, given, _ in NUMBERS]
        assert said == NUMBERS


async def test_times_are_read_from_the_buckets(browser: Browser) -> None:
    """A quarter of the way into a bucket is a quarter of the way through its time."""
    script = """async ([within, q]) => {
      const { Past } = await import('/dashboard/charts.js');
      return new Past({ columns: [], buckets_s: [1, 2, 4], kept_s: 9 }).quantile(within, q);
    }"""
    cases: list[tuple[list[int], float, float | None]] = [
        ([0, 0, 0, 0], 0.5, None),
        ([4, 0, 0, 0], 0.5, 0.5),
        ([0, 4, 0, 0], 0.25, 1.25),
        ([1, 1, 2, 0], 0.75, 3.0),
        ([0, 0, 0, 5], 0.95, 4.0),
    ]
    async with serving() as service, looking(browser, service) as page:
        for within, q, expected in cases:
            assert await page.evaluate(script, [within, q]) == expected, within
