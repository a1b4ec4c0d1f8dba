"""``/dashboard``: the page for everybody, the numbers for admins, nothing from elsewhere."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.dashboard import Dashboard
from gateway.pages import TYPES
from gateway.routes import dashboard as module
from gateway.sse import Parser
from tests.kit.service import Service, serving

ADMIN, PLAIN = "kv-3f1c7a90b2d84e65", "kv-8d1c7a90b2d84e65"
TENANTS = [
    {"name": "ops", "api_keys": [ADMIN], "admin": True},
    {"name": "acme", "api_keys": [PLAIN]},
]


async def first_events(service: Service, count: int, *, key: str | None = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    found: dict[str, Any] = {}
    parser = Parser()
    async with (
        asyncio.timeout(30),
        service.session.get(f"{service.url}/dashboard/live", headers=headers) as seen,
    ):
        assert seen.status == 200
        assert seen.headers["Content-Type"].startswith("text/event-stream")
        assert seen.headers["Cache-Control"] == "no-store"
        async for received in seen.content.iter_any():
            for event in parser.feed(received):
                found[event.name] = orjson.loads(event.data)
            if len(found) >= count:
                break
    return found


@pytest.mark.parametrize("path", ["/dashboard", *(f"/dashboard/{name}" for name in TYPES)])
async def test_the_page_is_served_with_what_keeps_it_safe(path: str) -> None:
    async with serving(tenants=TENANTS) as service:
        answer = await service.send("GET", path)
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"].endswith("; charset=utf-8")
        again = await service.send("GET", path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status, again.raw) == (304, b"")
        assert again.headers["ETag"] == answer.headers["ETag"]
        other = await service.send("GET", path, headers={"If-None-Match": '"other"'})
        assert other.raw == answer.raw


@pytest.mark.parametrize(
    "name", ["__init__.py", "vendor/README.md", "../auth.py", "%2e%2e%2fauth.py", "x" * 3000]
)
async def test_nothing_but_the_page_is_served(name: str) -> None:
    async with serving() as service:
        assert (await service.send("GET", f"/dashboard/{name}")).status == 404


async def test_without_keys_everybody_on_this_machine_may_look() -> None:
    async with serving() as service:
        await service.chat(True)
        await service.chat(True)
        events = await first_events(service, 2)
        assert events["hello"]["open"] is True
        stats = (await service.send("GET", "/v1/cache/stats")).body
        said = events["whole"]["sections"]["stats"]
        assert {name: said[name] for name in stats if name != "backends"} == {
            name: value for name, value in stats.items() if name != "backends"
        }
        (best,) = events["whole"]["sections"]["keys"]
        assert (best["hits"], best["tenant"]) == (1, "default")


async def test_with_keys_it_needs_one_of_an_admin() -> None:
    async with serving(tenants=TENANTS) as service:
        live = "/dashboard/live"
        assert (await service.send("GET", live)).status == 401
        assert (await service.send("GET", f"{live}?key={ADMIN}")).status == 401
        refused = await service.send("GET", live, key=PLAIN)
        assert (refused.status, refused.error["code"]) == (403, "admin_only")
        assert "admin: true" in refused.error["message"]
        hello = (await first_events(service, 1, key=ADMIN))["hello"]
        assert (hello["open"], hello["tenant"], hello["tenants"]) == (False, "ops", ["acme", "ops"])
        head = await service.send("HEAD", live, key=ADMIN)
        assert (head.status, head.raw) == (200, b"")


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when somebody who looked at endless frames is let go."""
    gone = asyncio.Event()

    async def endless(_: Dashboard) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: %b\n\n" % (b"x" * 100_000)
                await asyncio.sleep(0)
        finally:
            gone.set()

    monkeypatch.setattr(Dashboard, "frames", endless)
    return gone


async def test_who_goes_away_leaves_nothing_behind(
    left: asyncio.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving() as service, asyncio.timeout(30):
        async with service.session.get(f"{service.url}/dashboard/live") as seen:
            await seen.content.readany()
        await left.wait()
    assert "defect" not in capsys.readouterr().out


async def test_who_takes_nothing_is_let_go(
    left: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_S", 0.05)
    async with serving() as service, asyncio.timeout(30):
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as asleep:
            asleep.sendall(b"GET /dashboard/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await left.wait()


async def test_the_bare_address_leads_to_the_page() -> None:
    async with serving() as service:
        async with service.session.get(f"{service.url}/", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, "/dashboard")
        async with service.session.get(service.url) as response:
            assert (response.status, response.url.path) == (200, "/dashboard")
