"""The plan by a configuration alone is the plan that a gateway with it makes."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.cli_remote import CannotAskError
from gateway.explaining_offline import explain_offline
from tests.kit.service import QUESTION, serving

BODY = {"model": "m", "messages": QUESTION, "kv_cache": {"enabled": True, "cache_key": "docs:1"}}
CONFIG: dict[str, Any] = {
    "key_prefixes": {"docs:": {"tier": "cold", "ttl": 500}},
    "defaults": {"scope": "tenant"},
}
BACKENDS = [{"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}]
TENANTS = [
    {"name": "a", "api_keys": ["kv-alice-3f1c7a90b2d84e65"]},
    {"name": "b", "api_keys": ["kv-bob-3f1c7a90b2d84e65"], "user": "bob"},
]


def offline(file: Path | None, body: Any = BODY, **more: Any) -> dict[str, Any]:
    wish: dict[str, Any] = {"endpoint": None, "tenant": None, "environ": {}, **more}
    headers = wish.pop("headers", ())
    return explain_offline(orjson.dumps(body), headers, file, **wish)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "config.yaml"
    found.write_text(json.dumps({**CONFIG, "backends": BACKENDS, "tenants": TENANTS}))
    return found


async def test_it_is_the_plan_of_a_running_gateway(tmp_path: Path) -> None:
    file, secrets = tmp_path / "secret.yaml", {"kv": "the secret of a deployment"}
    parts = {"backends": BACKENDS, "tenants": TENANTS, "secrets": secrets}
    file.write_text(json.dumps({**CONFIG, **parts}))
    headers = {"X-Cache-Priority": "low", "X-Cache-Scope": "user"}
    async with serving(**CONFIG, tenants=TENANTS, secrets=secrets) as service:
        answer = await service.send(
            "POST", "/v1/cache/explain", BODY, headers=headers, key=TENANTS[1]["api_keys"][0]
        )
        told = offline(file, headers=headers.items(), tenant="b")
        assert told.items() <= answer.body.items()
        assert (told["plan"]["tier"], told["plan"]["scope"]) == ("cold", "user")


def test_a_key_is_told_only_where_the_secret_is_known(tmp_path: Path) -> None:
    folder, file = tmp_path / "store", tmp_path / "kvgate.yaml"
    folder.mkdir()
    file.write_text(json.dumps({"backends": BACKENDS, "store": {"disk_path": str(folder)}}))
    body = {**BODY, "model": "m"}
    assert offline(file, body)["plan"]["key"] is None
    assert list(folder.iterdir()) == []
    (folder / "kv.secret").write_text("s" * 64)
    assert len(offline(file, body)["plan"]["key"]) == 32


def test_without_a_file_the_defaults_and_the_embedded_engine_hold() -> None:
    told = offline(None, {**BODY, "model": "deepseek-chat"})
    assert told["model"] == "smollm2-135m-instruct"
    assert told["plan"]["enabled"] is True
    assert "verdict" not in told


@pytest.mark.parametrize(
    ("body", "more", "code", "said"),
    [
        ({**BODY, "model": "gone"}, {}, 1, "does not exist here"),
        ({**BODY, "kv_cache": {"ttl": "soon"}}, {}, 1, "kv_cache.ttl"),
        ({**BODY, "messages": 5}, {}, 1, "messages"),
        (BODY, {"endpoint": "chats"}, 1, "endpoint must be one of"),
        (BODY, {"tenant": "c"}, 2, "there are a, b"),
        (BODY, {"environ": {"KVGATE_SERVER__PORT": "x"}}, 2, "server.port"),
    ],
)
def test_what_cannot_be_explained_is_told(
    file: Path, body: Any, more: dict[str, Any], code: int, said: str
) -> None:
    with pytest.raises(CannotAskError, match=said) as caught:
        offline(file, body, **more)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_the_open_tenant_has_one_name() -> None:
    with pytest.raises(CannotAskError, match="there are default"):
        offline(None, tenant="acme")
