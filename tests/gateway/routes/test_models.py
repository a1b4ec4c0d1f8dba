"""What can be asked for; and requests that are no model call, passed on for admins."""

import asyncio

import pytest

from tests.kit.scripted_upstream import Reply, ScriptedUpstream, error_reply, json_reply
from tests.kit.service import serving

ALIASES = {"gpt-4o": "m", "deepseek-chat": "default", "dangling": "gone", "deepseek-coder": None}


async def test_models_and_their_aliases_are_listed() -> None:
    async with serving(models=("m", "org/deep/model"), aliases=ALIASES) as service:
        body = (await service.send("GET", "/v1/models")).body
        assert body["object"] == "list"
        cards = {card["id"]: card for card in body["data"]}
        assert list(cards) == ["m", "org/deep/model", "deepseek-chat", "gpt-4o"]
        assert cards["m"] == {
            "id": "m",
            "object": "model",
            "created": int(service.clock.now()),
            "owned_by": "kvgate",
        }
        assert cards["gpt-4o"]["parent"] == cards["deepseek-chat"]["parent"] == "m"
        assert service.upstream.calls == 0


async def test_the_sdk_lists_and_finds_them() -> None:
    async with serving(models=("m", "org/deep/model")) as service, service.openai() as client:
        assert "m" in {model.id async for model in client.models.list()}
        for name in ("m", "org/deep/model", "default"):
            assert (await client.models.retrieve(name)).id == name


async def test_a_model_that_is_not_there_is_404() -> None:
    async with serving() as service:
        answer = await service.send("GET", "/v1/models/nope")
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")


async def test_a_backend_for_any_model_is_asked_for_its_own() -> None:
    async with serving(models=("m", "*")) as service:
        listed = (await service.send("GET", "/v1/models")).body["data"]
        assert {card["id"] for card in listed} >= {"m", "up-1"}
        one = await service.send("GET", "/v1/models/up-1?x=1")
        assert one.body["path"] == "/models/up-1"
        assert one.body.keys() >= {"id", "object", "created", "owned_by"}


@pytest.mark.parametrize(
    "odd",
    [
        json_reply({"detail": "Not Found"}, status=404),
        Reply((b"<html>no</html>",), 404, content_type="text/html"),
        json_reply({"object": "list", "data": []}),
        error_reply(500),
    ],
)
async def test_one_model_of_a_backend_for_any_is_told_in_openais_form(odd: Reply) -> None:
    upstream = ScriptedUpstream(odd)
    async with serving(models=("*",), upstream=upstream) as service:
        known = await service.send("GET", "/v1/models/up-1")
        assert (known.status, known.body["id"], known.body["object"]) == (200, "up-1", "model")
        upstream.replies = [odd]
        unknown = await service.send("GET", "/v1/models/org/none")
        assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
        assert unknown.error["param"] == "model"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../files",
        "/v1/models/%2e%2e/chat/completions",
        "/v1/models/x/../../../admin?x=1",
        "/v1/models/x//y",
        "/v1/chat/completions/%2e%2e/%2e%2e/files",
    ],
)
async def test_no_path_leads_out_of_the_route_with_the_operators_key(path: str) -> None:
    """By a raw socket: client libraries tidy such paths up before they send them."""
    async with serving(models=("*",)) as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        status = (await reader.read()).split(b" ", 2)[1]
        writer.close()
        await writer.wait_closed()
        assert status == b"404"
        assert service.upstream.calls == 0


@pytest.mark.parametrize("reply", [error_reply(500), json_reply([]), Reply(("fin",))])
async def test_a_list_that_the_backend_does_not_give_is_left_out(reply: Reply) -> None:
    async with serving(models=("m", "*"), upstream=ScriptedUpstream(reply, reply)) as service:
        answer = await service.send("GET", "/v1/models")
        assert answer.status == 200
        assert "m" in {card["id"] for card in answer.body["data"]}


ROOT = "kv-root-3f1c7a90b2d84e65"
OPS = [{"name": "ops", "api_keys": [ROOT], "admin": True}]


async def test_what_is_stored_under_an_id_is_passed_on() -> None:
    async with serving(models=("*",)) as service:
        for method, path, body in (
            ("GET", "/v1/chat/completions/c-1/messages?limit=2", None),
            ("POST", "/v1/chat/completions/c-1", {"metadata": {"a": "b"}}),
            ("DELETE", "/v1/chat/completions/c-1", None),
            ("GET", "/v1/responses/r-1", None),
            ("POST", "/v1/responses/r-1/cancel", {"model": "m"}),
            ("GET", "/v1/responses/r-1/input_items", None),
        ):
            answer = await service.send(method, path, body)
            assert answer.status == 200
            seen = service.upstream.seen[-1]
            assert (seen.method, seen.path) == (method, path)
        assert service.upstream.seen[1].body == {"metadata": {"a": "b"}}


async def test_what_is_about_all_that_lies_at_the_backend_needs_an_admins_key() -> None:
    managing = (("GET", "/v1/chat/completions?limit=2"), ("DELETE", "/v1/models/ft:x"))
    async with serving(models=("*",)) as service:
        for method, path in managing:
            answer = await service.send(method, path)
            assert (answer.status, answer.error["code"]) == (403, "admin_only")
        assert service.upstream.calls == 0
    async with serving(models=("*",), tenants=OPS) as service:
        for method, path in managing:
            assert (await service.send(method, path)).status == 401
            assert (await service.send(method, path, key=ROOT)).status == 200
            seen = service.upstream.seen[-1]
            assert (seen.method, seen.path) == (method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"), ("POST", "/v1/fine_tuning/jobs"), ("GET", "/v1/responses"),
        ("POST", "/v1/responses/r-1"), ("DELETE", "/v1/responses/r-1/input_items"),
        ("GET", "/v1/chat/completions/c-1/other"), ("DELETE", "/v1/chat/completions"),
        ("PATCH", "/v1/models/m"), ("PUT", "/v1/chat/completions/c-1"),
    ],
)  # fmt: skip
async def test_no_other_route_reaches_the_backend(method: str, path: str) -> None:
    async with serving(models=("*",), tenants=OPS) as service:
        answer = await service.send(method, path, {"model": "m"}, key=ROOT)
        assert answer.error["code"] in {"unknown_url", "method_not_allowed"}
        assert service.upstream.calls == 0


@pytest.mark.parametrize("path", ["/responses/input_tokens", "/responses/compact"])
async def test_what_is_passed_on_arrives_as_it_came_but_for_our_words(path: str) -> None:
    plain = b'{"model": "m",  "input": [1.0, "kv"]}'
    ours = b'{"input": "kv_cache", "kv_cache": {"enabled": true}, "model": "m"}'
    spoken = {"X-Cache-Tags": "t"}
    async with serving(models=("*",)) as service:
        for raw in (plain, ours):
            assert (await service.send("POST", f"/v1{path}", raw, headers=spoken)).status == 200
        first, second = service.upstream.seen
        assert first.raw == plain
        assert second.raw == b'{"input":"kv_cache","model":"m"}'
        assert second.path == f"/v1{path}"
        assert not [name for name in second.headers if name.lower().startswith("x-cache")]
        assert second.headers["Authorization"] == "Bearer sk-operator-secret"

        deep = b'{"kv_cache": 1, "input": ' + b"[" * 500 + b"]" * 500 + b"}"
        for raw in (deep, b'["kv_cache"]', b'{"kv_cache"'):
            assert (await service.send("POST", f"/v1{path}", raw)).status == 400
        assert service.upstream.calls == 2


async def test_where_no_backend_could_have_them_there_are_none() -> None:
    async with serving() as service:
        answer = await service.send("POST", "/v1/responses/compact", {"model": "m"})
        assert (answer.status, answer.error["code"]) == (404, "not_found")
        service.upstream.otherwise = lambda _: error_reply(404, "none of mine")
        answer = await service.send("GET", "/v1/chat/completions/c-1")
        assert (answer.status, answer.error["message"]) == (404, "none of mine")


async def test_an_error_of_the_backend_is_passed_on_but_not_about_the_operators_key() -> None:
    upstream = ScriptedUpstream(error_reply(404, "no such completion"), error_reply(403, "sk-x"))
    async with serving(models=("*",), upstream=upstream) as service:
        first = await service.send("GET", "/v1/chat/completions/c-1")
        assert (first.status, first.error["message"]) == (404, "no such completion")
        second = await service.send("GET", "/v1/chat/completions/c-1")
        assert (second.status, second.error["code"]) == (502, "backend_auth")


async def test_a_backend_that_is_gone_is_a_bad_gateway() -> None:
    upstream = ScriptedUpstream(*[Reply(("rst",))] * 2)  # a GET is tried twice
    async with serving(models=("*",), upstream=upstream) as service:
        answer = await service.send("GET", "/v1/models/x")
        assert (answer.status, answer.error["code"]) == (502, "backend_unreachable")
