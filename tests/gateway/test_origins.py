"""Web pages at the border: what a browser may send here, and what it may read."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config import Config
from tests.kit.service import Answer, Service, serving

CHAT = "/v1/chat/completions"
KEY = "kv-3f1c7a90b2d84e65a1c0"
TENANTS = [{"name": "acme", "api_keys": [KEY]}]
PAGE = "https://app.example.com"
ROUTES = [
    ("POST", CHAT),
    ("GET", "/v1/models"),
    ("GET", "/v1/cache/entries"),
    ("POST", "/v1/cache/invalidate"),
    ("POST", "/v1/cache/warm"),
    ("PUT", "/v1/cache/contexts/x"),
    ("DELETE", "/v1/models/m"),
    ("GET", "/metrics"),
    ("GET", "/dashboard"),
    ("GET", "/dashboard/live"),
    ("GET", "/healthz"),
    ("GET", "/nowhere"),
    ("OPTIONS", CHAT),
]


def refused(answer: Answer, status: int = 403, code: str = "forbidden_origin") -> bool:
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["X-Request-ID"]
    return (answer.status, answer.error["code"]) == (status, code)


async def cross_site(service: Service, method: str, path: str) -> list[Answer]:
    """What pages of other sites are answered."""
    host = service.url.removeprefix("http://")
    sent: list[dict[str, str]] = [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "10.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": f"http://{host}.evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ]
    return [await service.send(method, path, headers=headers) for headers in sent]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_tenants_no_route_answers_another_sites_page(method: str, path: str) -> None:
    async with serving(models=("*",)) as service:
        assert all(refused(answer) for answer in await cross_site(service, method, path))
        assert service.upstream.calls == 0


async def test_a_refused_page_clears_and_spends_nothing() -> None:
    async with serving() as service:
        await service.chat({"enabled": True})
        for origin in ("https://evil.example", "null"):
            for path, body in (("invalidate", {"all": True}), ("warm", {"questions": ["?"]})):
                headers = {"Origin": origin}
                answer = await service.send("POST", f"/v1/cache/{path}", body, headers=headers)
                assert refused(answer)
        assert (await service.chat({"enabled": True})).headers["X-Cache-Level"] == "response"
        assert service.upstream.calls == 1


@pytest.mark.parametrize("host", ["localhost", "LocalHost.", "127.0.0.1", "127.8.9.1", "[::1]"])
async def test_a_page_of_our_own_may_ask_under_any_loopback_name_and_port(host: str) -> None:
    async with serving() as service:
        for at in (host, f"{host}:8080", f"{host}:39999"):
            own = {"Host": at, "Origin": f"http://{at.lower()}", "Sec-Fetch-Site": "same-origin"}
            assert (await service.chat(headers=own)).status == 200
            assert (await service.send("GET", "/dashboard", headers=own)).status == 200


async def test_a_configured_host_is_served_with_and_without_a_port() -> None:
    async with serving(server={"allowed_hosts": ["KV.internal", "kv:8443"]}) as service:
        for host, status in (
            ("kv.internal", 200), ("kv.internal:8080", 200), ("kv:8443", 200),
            ("kv", 403), ("kv:80", 403), ("x.kv.internal", 403),
        ):  # fmt: skip
            headers = {"Host": host, "Origin": f"https://{host}"}
            assert (await service.chat(headers=headers)).status == status


async def test_a_client_without_a_host_is_no_browser() -> None:
    async with serving() as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in await reader.readline()
        writer.close()


async def test_a_link_to_the_dashboard_may_be_followed_and_nothing_else() -> None:
    visit = {
        "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document",
    }  # fmt: skip
    async with serving() as service:
        assert (await service.send("GET", "/dashboard", headers=visit)).status == 200
        assert refused(await service.send("GET", "/v1/cache/entries", headers=visit))
        framed = {**visit, "Sec-Fetch-Dest": "iframe"}
        assert refused(await service.send("GET", "/dashboard", headers=framed))


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded",
             "multipart/form-data; boundary=x", "application/jsonp", "text/json", ""],
)  # fmt: skip
@pytest.mark.parametrize("keyed", [False, True])
async def test_a_body_that_is_not_declared_as_json_is_415(kind: str, keyed: bool) -> None:
    async with serving(tenants=TENANTS if keyed else []) as service:
        key = KEY if keyed else None
        for path in (CHAT, "/v1/embeddings", "/v1/cache/invalidate", "/v1/cache/warm"):
            body: Any = {"all": True}
            answer = await service.send("POST", path, body, key=key, headers={"Content-Type": kind})
            assert refused(answer, 415, "unsupported_media_type")
            assert answer.error["param"] == "Content-Type"
        assert service.upstream.calls == 0


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON ; charset=utf-8", "application/vnd.x+json"]
)
async def test_every_spelling_of_json_is_read(kind: str) -> None:
    async with serving() as service:
        assert (await service.chat(headers={"Content-Type": kind})).status == 200


async def test_a_request_without_a_body_needs_no_type() -> None:
    async with serving() as service:
        for method, path in (("DELETE", "/v1/cache/conversations/x"), ("GET", "/v1/models")):
            async with service.session.request(method, service.url + path) as response:
                assert response.status in {200, 404}


async def test_a_form_for_a_route_that_is_not_there_is_404() -> None:
    async with serving() as service:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await service.send("POST", "/v1/audio/transcriptions", b"--x--", headers=kind)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_named_origin_asks_first_and_reads_our_headers(keyed: bool) -> None:
    server = {"cors_origins": [PAGE.upper().replace("HTTPS", "https") + ":443"]}
    async with serving(tenants=TENANTS if keyed else [], server=server) as service:
        wanted = "authorization,content-type,x-cache-id,x-stainless-os"
        asks = {
            "Origin": PAGE,
            "Sec-Fetch-Site": "cross-site",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": wanted,
            "Access-Control-Request-Private-Network": "true",
        }
        answer = await service.send("OPTIONS", CHAT, headers=asks)
        assert (answer.status, answer.raw) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert answer.headers["Access-Control-Allow-Headers"] == wanted
        assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
        assert "DELETE" in answer.headers["Access-Control-Allow-Methods"]
        assert "Origin" in answer.headers.getall("Vary")
        assert service.upstream.calls == 0

        page = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
        key = KEY if keyed else None
        for expected in ("none", "response", "response"):
            answer = await service.chat({"enabled": True}, key=key, headers=page)
            assert answer.headers["X-Cache-Level"] == expected
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
            shown = [name for name in answer.headers if name.startswith(("X-Cache", "Cache-"))]
            assert set(shown) <= set(exposed)
        streamed = await service.chat({"enabled": True}, key=key, headers=page, stream=True)
        assert streamed.headers["Access-Control-Allow-Origin"] == PAGE
        wrong = await service.chat(key="wrong" if keyed else None, headers=page, model=5)
        assert wrong.status == (401 if keyed else 400)
        assert wrong.headers["Access-Control-Allow-Origin"] == PAGE


async def test_with_tenants_other_origins_need_a_key_and_read_nothing_in_a_browser() -> None:
    async with serving(tenants=TENANTS, server={"cors_origins": [PAGE]}) as service:
        for origin in ("https://evil.example", f"{PAGE}.evil.example"):
            page = {"Origin": origin, "Host": "kv.example.com"}
            answer = await service.chat(key=KEY, headers=page)
            assert answer.status == 200
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert (await service.chat(headers=page)).status == 401
            preflight = {**page, "Access-Control-Request-Method": "POST"}
            answer = await service.send("OPTIONS", CHAT, headers=preflight)
            assert answer.status == 405
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cors_origins", "*"), ("cors_origins", "app.example.com"),
        ("cors_origins", "https://app.example.com/"), ("cors_origins", "https://*.example.com"),
        ("cors_origins", "null"), ("cors_origins", 5), ("allowed_hosts", "*"),
        ("allowed_hosts", "https://kv"), ("allowed_hosts", "kv/"), ("allowed_hosts", ""),
    ],
)  # fmt: skip
def test_what_names_no_single_host_or_origin_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        Config.model_validate({"server": {key: [value]}})
