"""What the configuration names is what is built, in its order."""

import time

import aiohttp
import pytest

from gateway.backends.embedded import EngineView
from gateway.backends.served import engine_model, served
from gateway.config import Config
from gateway.workers.team import FarEngines, told
from policies.outcome import Failed
from tests.kit.entries import asked
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import ScriptedUpstream, stream_reply

UP = {"name": "up", "base_url": "http://127.0.0.1:9/v1/", "models": ["m"]}


@pytest.mark.parametrize(
    ("configured", "served"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("/models/SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M.Q4_1"),
        ("./folder/llama-3.2", "llama-3.2"),
        ("./folder/", "folder"),
    ],
)
def test_the_engines_model_is_served_under_its_own_name(configured: str, served: str) -> None:
    assert engine_model(configured) == served


async def test_each_engine_and_each_upstream_is_a_backend_of_its_own() -> None:
    engines = FarEngines()
    engines.hear(told({"embedded-2": EngineView("ready", "http://127.0.0.1:7")}))
    upstream = {**UP, "kv_tokens": 300, "max_concurrency": 2, "max_waiting": 1}
    config = Config.model_validate({"backends": [upstream], "engine": {"replicas": 2}})
    async with aiohttp.ClientSession() as session:
        found = served(config, session, engines, time.monotonic)
    assert [one.backend.name for one in found] == ["embedded", "embedded-2", "up"]
    assert [one.models for one in found] == [("smollm2-135m-instruct",)] * 2 + [("m",)]
    assert found[2].kv_tokens == 300
    assert repr(found[1].backend) == "<OpenAIBackend embedded-2 kvgate>"


async def test_the_waits_for_engines_and_upstreams_are_what_the_configuration_says() -> None:
    engines = FarEngines()
    async with ScriptedUpstream(stream_reply(Gate()), stream_reply(Gate())) as silent:
        address = silent.url.removesuffix("/v1")
        engines.hear(told({"embedded": EngineView("ready", address)}))
        upstream = {**UP, "base_url": silent.url, "first_token_timeout": 0.02}
        config = Config.model_validate(
            {"backends": [upstream], "engine": {"enabled": True, "first_token_timeout": 0.02}}
        )
        async with aiohttp.ClientSession() as session:
            for one in served(config, session, engines, time.monotonic):
                (ending,) = [piece async for piece in one.backend.run(*asked(stream=True))]
                assert isinstance(ending, Failed)
                assert ending.code == "backend_first_token_timeout"
