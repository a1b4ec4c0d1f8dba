"""What a worker is told is what the supervisor has, secrets included, and shows none of them."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.config import Config, load
from gateway.workers.handover import Handover, config_as_dict

SHIPPED = Path(__file__).parent.parent.parent.parent / "config.yaml"
RICH: dict[str, Any] = {
    "tenants": [{"name": "acme", "api_keys": ["a-key-of-some-length"], "admin": True}],
    "backends": [
        {"name": "up", "base_url": "http://up/v1", "api_key": "sk-upstream", "models": ["m", "*"]}
    ],
    "engine": {"enabled": True, "threads": 2, "prefix_cache": False},
    "aliases": {"deepseek-chat": None, "gpt": "default"},
    "tiers": {"hot": {"stale_while_revalidate": 0, "ttl": "10m"}},
    "key_prefixes": {"faq:": None, "doc:": {"ttl": 60}},
    "store": {"redis_url": "redis://:pw@127.0.0.1/0"},
    "warm": {"patterns": [{"id": "p", "variations": ["a", {"role": "user", "content": "b"}]}]},
}


@pytest.mark.parametrize(
    "config", [Config(), Config.model_validate(RICH), load(SHIPPED, environ={})]
)
def test_it_arrives_as_it_was_sent(config: Config) -> None:
    sent = Handover(3, config, b"s" * 32)
    assert Handover.of(orjson.loads(orjson.dumps(sent.as_dict()))) == sent


def test_names_that_the_operator_took_away_stay_away() -> None:
    received = Config.model_validate(config_as_dict(Config.model_validate(RICH)))
    assert received.aliases == {"deepseek-coder": "default", "gpt": "default"}
    assert set(received.key_prefixes) == {"doc:"}


def test_an_api_key_is_sent_as_the_digest_that_is_known_of_it() -> None:
    (tenant,) = config_as_dict(Config.model_validate(RICH))["tenants"]
    assert tenant["api_keys"][0].startswith("sha256:")


def test_its_repr_shows_no_secret() -> None:
    shown = repr(Handover(3, Config.model_validate(RICH), b"secret"))
    assert shown == "<Handover to worker 3>"
