"""One tenant's failures and another's calls; what brings a backend down, and up again."""

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from tests.kit.clock import Ticks
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    Seen,
    error_reply,
    json_reply,
    well_behaved,
)
from tests.kit.service import Answer, Service, serving

ALICE, BOB = "kv-alice-71c2a9d0", "kv-bob-5e8f3b21"
TENANTS = [{"name": "a", "api_keys": [ALICE]}, {"name": "b", "api_keys": [BOB]}]
FAILOVER = {"retries": 2, "breaker_failures": 5}
POISON = "poison"

FAULTS: dict[str, Callable[[], Reply]] = {
    "500": lambda: error_reply(500),
    "503": lambda: error_reply(503),
    "a reset": lambda: Reply(("rst",)),
    "an early end": lambda: Reply(("fin",)),
    "silence": lambda: Reply((Gate(),)),
}


def poisoned(fault: str) -> Callable[[Seen], Reply]:
    return lambda seen: FAULTS[fault]() if POISON.encode() in seen.raw else well_behaved(seen)


async def question(service: Service, text: str, key: str | None = None) -> Answer:
    return await service.chat(key=key, messages=[{"role": "user", "content": text}])


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("together", [True, False])
async def test_one_tenants_bad_prompts_refuse_no_other_tenant(
    fault: str, *, together: bool
) -> None:
    limits = {"read_timeout": 0.05} if fault == "silence" else {}
    async with serving(tenants=TENANTS, failover=FAILOVER, **limits) as service:  # type: ignore[arg-type]  # by name
        service.upstream.otherwise = poisoned(fault)
        bad = [question(service, f"{POISON} {number}", ALICE) for number in range(30)]
        if together:
            answers = await asyncio.gather(*bad)
        else:
            answers = [await one for one in bad[:12]]
            for one in bad[12:]:
                one.close()
        assert {answer.status for answer in answers} <= {500, 502, 503, 504}
        assert "backend_down" not in {answer.error["code"] for answer in answers}
        good = [(await question(service, f"fine {number}", BOB)).status for number in range(20)]
        assert good == [200] * 20


@pytest.mark.parametrize(
    ("dialect", "path"), [("vllm", "/health"), ("sglang", "/health"), ("llamacpp", "/health")]
)
async def test_a_backend_that_loads_is_asked_again_as_soon_as_its_health_route_says_so(
    dialect: str, path: str
) -> None:
    ticks = Ticks()
    async with ScriptedUpstream() as upstream:
        backend = {"name": "up", "base_url": upstream.url, "models": ["m"], "dialect": dialect}
        async with serving(backends=[backend], failover=FAILOVER, sleep=ticks.sleep) as service:
            await upstream.stop()
            assert (await service.chat()).status == 502
            await ticks.slept_once()
            upstream.checks = lambda _: error_reply(503, "loading")
            await upstream.start()
            await ticks.tick()
            await ticks.slept_once()
            assert (await service.chat()).error["code"] == "backend_down"
            upstream.checks = well_behaved
            await ticks.tick()
            await ticks.slept_once()
            assert (await service.chat()).status == 200
            assert [seen.path for seen in upstream.checked[1:]] == [path, path]
            assert sum(ticks.slept[:2]) <= 2.0


async def test_a_queue_in_front_of_a_backend_is_not_its_slowness() -> None:
    async with ScriptedUpstream() as narrow, ScriptedUpstream() as wide:
        for upstream in (narrow, wide):
            upstream.otherwise = lambda seen: Reply((0.005, *well_behaved(seen).steps))
        backends = [
            {"name": name, "base_url": one.url, "models": ["m"], "max_concurrency": most}
            for name, one, most in (("narrow", narrow, 1), ("wide", wide, 100))
        ]
        routing = {"strategy": "round_robin"}
        async with serving(backends=backends, routing=routing, failover=FAILOVER) as service:
            answers = await asyncio.gather(*(question(service, str(n)) for n in range(160)))
            assert {answer.status for answer in answers} == {200}
            assert set(service.gateway.health.states().values()) == {"up"}
            assert narrow.calls == wide.calls


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_refused_key_is_the_operators_and_costs_one_try_and_one_line(status: int) -> None:
    async with serving(failover=FAILOVER) as service:
        refusals = iter(range(1000))
        service.upstream.otherwise = lambda _: error_reply(
            status, f"Your key is wrong (request {next(refusals)})"
        )
        with capture_logs() as lines:
            for number in range(10):
                answer = await question(service, str(number))
                assert (answer.status, answer.error["code"]) == (502, "backend_auth")
                assert "api_key of up" in answer.error["message"]
                assert answer.headers["X-Should-Retry"] == "false"
        assert service.upstream.calls == 10
        said = [line for line in lines if "words" in line]
        assert len(said) == 1
        assert "Your key is wrong" in said[0]["words"]
        ready = await service.send("GET", "/readyz")
        assert (ready.status, ready.body["status"]) == (200, "degraded")
        assert ready.body["backends"] == {"up": f"key refused (HTTP {status})"}

        service.upstream.otherwise = lambda _: error_reply(status, "Your account is empty")
        with capture_logs() as lines:
            await question(service, "again")
            await question(service, "and again")
        assert [line["words"] for line in lines if "words" in line] != []
        assert len([line for line in lines if "words" in line]) == 1

        service.upstream.otherwise = well_behaved
        assert (await question(service, "and now")).status == 200
        assert (await service.send("GET", "/readyz")).body["status"] == "ready"


async def test_the_start_asks_with_the_key_and_says_what_is_wrong_with_an_address() -> None:
    upstream = ScriptedUpstream()
    upstream.checks = lambda _: error_reply(404)
    with capture_logs() as lines:
        async with serving(upstream=upstream) as service:
            assert (await service.send("GET", "/readyz")).status == 200
    assert upstream.checked[0].headers["Authorization"] == "Bearer sk-operator-secret"
    (line,) = [line for line in lines if line["event"] == "backend check"]
    assert "/v1/models is 404" in line["says"]


async def test_it_is_not_ready_when_no_backend_can_be_reached_and_nothing_is_stored() -> None:
    ticks = Ticks()
    async with ScriptedUpstream() as upstream:
        await upstream.stop()
        backend = {"name": "up", "base_url": upstream.url, "models": ["m"]}
        async with serving(backends=[backend], failover=FAILOVER, sleep=ticks.sleep) as service:
            ready = await service.send("GET", "/readyz")
            assert (ready.status, ready.body["status"]) == (503, "waiting")
            reason = "none can be reached, and nothing is stored"
            assert ready.body["waiting_for"] == {"backends": reason}
            await upstream.start()
            await ticks.tick()
            await ticks.slept_once()
            assert (await service.send("GET", "/readyz")).body["status"] == "ready"
            await service.chat(True)
            await service.settled()
            await upstream.stop()
            await question(service, "another")
            await ticks.tick()
            await ticks.slept_once()
            ready = await service.send("GET", "/readyz")
            assert (ready.status, ready.body["status"]) == (200, "degraded")


async def test_default_before_a_backend_for_any_name_is_the_first_that_it_lists() -> None:
    async with serving(models=("*",)) as service:
        assert (await service.chat(model="default")).status == 200
        assert service.upstream.seen[0].body["model"] == "up-1"
    upstream = ScriptedUpstream()
    upstream.checks = lambda _: json_reply({"data": []})
    async with serving(models=("*",), upstream=upstream) as service:
        answer = await service.chat(model="default")
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert upstream.calls == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_an_incomplete_response_is_not_reported_as_stored(*, stream: bool) -> None:
    part = {"type": "output_text", "text": "half", "annotations": []}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "incomplete"}
    body = {
        "id": "resp_1", "object": "response", "status": "incomplete", "model": "m", "error": None,
        "output": [{**item, "content": [part]}], "incomplete_details": {"reason": "max_output_tokens"},
        "usage": {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4},
    }  # fmt: skip
    async with serving(upstream=ScriptedUpstream(json_reply(body), json_reply(body))) as service:
        asked = {"model": "m", "input": "Hi", "kv_cache": True, "stream": stream}
        for _ in range(2):
            answer = await service.send("POST", "/v1/responses", asked)
            await service.settled()
            assert answer.status == 200
            if not stream:
                assert "stored" not in answer.headers["Cache-Status"]
                assert "X-Cache-TTL" not in answer.headers
        assert service.upstream.calls == 2
