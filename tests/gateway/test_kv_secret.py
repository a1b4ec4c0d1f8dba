"""One secret for a deployment: made once, kept, and the same for all of its gateways."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.config import Config, ConfigError, load
from gateway.kv_secret import FILE_NAME, REDIS_KEY, kv_secret, secret_file
from gateway.store.redis_client import connect
from tests.kit import redis_server

UP = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
IN_MEMORY = {"cold": {"store": "memory"}}


def config_of(folder: Path | None, **more: Any) -> Config:
    store = {"disk_path": str(folder) if folder else None, **more.pop("store", {})}
    return Config.model_validate({"backends": [UP], "store": store, **more})


def secret_of(config: Config, **environ: str) -> bytes:
    return asyncio.run(kv_secret(config, environ))


def test_it_is_the_same_after_a_restart_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = secret_of(config_of(tmp_path / "new"))
    assert len(first) == 32
    assert secret_of(config_of(tmp_path / "new")) == first
    assert secret_of(config_of(tmp_path / "other")) != first
    (file,) = (tmp_path / "new").iterdir()
    assert file.name == FILE_NAME
    assert file.stat().st_mode & 0o777 == 0o600


def test_gateways_that_start_at_once_agree(tmp_path: Path) -> None:
    for turn in range(20):
        config = config_of(tmp_path / str(turn))
        with ThreadPoolExecutor(8) as gateways:
            found = set(gateways.map(lambda _, config=config: secret_of(config), range(8)))
        assert len(found) == 1
        assert len(list((tmp_path / str(turn)).iterdir())) == 1


def test_the_kept_text_can_be_configured_elsewhere(tmp_path: Path) -> None:
    kept = secret_of(config_of(tmp_path))
    text = (tmp_path / FILE_NAME).read_text()
    elsewhere = tmp_path / "elsewhere"
    in_text = config_of(elsewhere, secrets={"kv": text})
    in_a_file = config_of(elsewhere, secrets={"kv": f"file:{tmp_path / FILE_NAME}"})
    from_environment = load(
        None, environ={"KVGATE_SECRETS__KV": text, "KVGATE_STORE__DISK_PATH": str(elsewhere)}
    )
    for config in (in_text, in_a_file, from_environment):
        assert secret_of(config) == kept
        assert text.strip() not in repr(config)
    assert not elsewhere.exists()


@pytest.mark.parametrize("given", ["short", "file:/nonexistent/file", 7])
def test_what_is_no_secret_is_refused_by_name_and_not_repeated(tmp_path: Path, given: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"secrets:\n  kv: {given}\n")
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    (problem,) = caught.value.problems
    assert (problem.path, problem.line) == ("secrets.kv", 2)
    assert "short" not in problem.message


def test_it_lies_where_the_deployment_keeps_what_it_is_for(tmp_path: Path) -> None:
    cache = {"KVGATE_CACHE_DIR": str(tmp_path / "cache")}
    disk = {"kv_disk": {"path": str(tmp_path / "kv")}}
    engine = {"enabled": True, **disk}
    assert secret_file(config_of(tmp_path, engine=engine), cache) == tmp_path / FILE_NAME
    assert secret_file(config_of(None, engine=engine), cache) == tmp_path / "kv" / FILE_NAME
    assert secret_file(config_of(None, engine=disk), cache) == tmp_path / "cache" / FILE_NAME
    assert secret_file(config_of(None), cache) == tmp_path / "cache" / FILE_NAME
    assert secret_file(config_of(None, tiers=IN_MEMORY), cache) is None


def test_with_all_in_memory_it_is_kept_in_a_cache_folder_that_is_there(tmp_path: Path) -> None:
    config, cache = config_of(None, tiers=IN_MEMORY), str(tmp_path / "cache")
    assert secret_of(config, KVGATE_CACHE_DIR=cache) != secret_of(config, KVGATE_CACHE_DIR=cache)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    assert secret_of(config, KVGATE_CACHE_DIR=cache) == secret_of(config, KVGATE_CACHE_DIR=cache)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64])
def test_a_file_that_holds_none_costs_no_start_and_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    structlog.reset_defaults()
    with capture_logs() as lines:
        assert secret_of(config_of(tmp_path)) != secret_of(config_of(tmp_path))
    assert [line["file"] for line in lines] == [str(tmp_path / FILE_NAME)] * 2
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_folder_that_cannot_be_made_costs_no_start_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    structlog.reset_defaults()
    with capture_logs() as lines:
        assert len(secret_of(config_of(tmp_path / "taken" / "folder"))) == 32
    (line,) = lines
    assert line["reason"] == "Not a directory"


async def on_redis(url: str) -> bytes | None:
    client = connect(url, limit_s=5)
    try:
        found = await client.get(REDIS_KEY)
        assert not isinstance(found, str)
        return found
    finally:
        await client.aclose()


def test_gateways_on_one_redis_share_it_and_keep_it_when_redis_forgets(tmp_path: Path) -> None:
    structlog.reset_defaults()
    with redis_server.running() as server, capture_logs() as lines:
        store = {"redis_url": server.url}
        here, there = (config_of(tmp_path / name, store=store) for name in ("here", "there"))
        lonely = secret_of(config_of(tmp_path / "there"))
        shared = secret_of(here)
        assert not lines
        assert secret_of(there) == shared != lonely
        assert [line["file"] for line in lines] == [str(tmp_path / "there" / FILE_NAME)]
        server.kill()
        server.start()
        assert secret_of(there) == shared
        assert secret_of(here) == shared
        assert len(lines) == 1


def test_a_configured_secret_wins_over_the_one_on_redis_and_that_is_said(tmp_path: Path) -> None:
    structlog.reset_defaults()
    with redis_server.running() as server, capture_logs() as lines:
        store = {"redis_url": server.url}
        first, second = (
            config_of(tmp_path, store=store, secrets={"kv": letter * 32}) for letter in "ab"
        )
        mine = secret_of(first)
        assert asyncio.run(on_redis(server.url)) == b"a" * 32
        assert secret_of(config_of(tmp_path, store=store)) == mine
        lines.clear()
        assert secret_of(second) != mine
        (line,) = lines
        assert line["event"].startswith("secrets.kv differs")
        assert asyncio.run(on_redis(server.url)) == b"a" * 32


def test_without_redis_the_kept_one_holds_and_that_is_said(tmp_path: Path) -> None:
    structlog.reset_defaults()
    kept = secret_of(config_of(tmp_path))
    with capture_logs() as lines:
        assert secret_of(config_of(tmp_path, store={"redis_url": "redis://127.0.0.1:1"})) == kept
    (line,) = lines
    assert line["event"].startswith("KV secret not shared")
