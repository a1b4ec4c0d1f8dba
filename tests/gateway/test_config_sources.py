"""Where a value came from, and variables that nobody reads."""

import pytest

from gateway.config import Config, ConfigError, load
from gateway.config_file import Document
from gateway.config_sources import Sources, overlay


def messages(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, environ=environ)
    return caught.value.lines()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("KVGATE_SERVR__PORT", "did you mean KVGATE_SERVER__PORT?"),
        ("KVGATE_SERVER_PORT", "did you mean KVGATE_SERVER__PORT?"),
        ("KVGATE_ENGINE_KV_MEMORY", "did you mean KVGATE_ENGINE__KV_MEMORY?"),
        ("KVGATE_WIBBLE", "levels are joined by two underscores"),
        ("KVGATE_SERVER__PROT", "did you mean server.port?"),
        ("KVGATE_TIERS__HOT__TTTL", "did you mean tiers.hot.ttl?"),
        ("KVGATE_CONTEXTS__X__TTTL", "did you mean contexts.x.ttl?"),
        ("KVGATE_TIERS__HOTT__TTL", "did you mean tiers.hot?"),
        ("KVGATE_TIERS__HOT__WIBBLE", "known here: ttl, priority"),
    ],
)
def test_a_variable_that_nobody_reads_is_an_error(name: str, hint: str) -> None:
    (line,) = messages({name: "1"})
    assert line.startswith(f"{name}: ")
    assert hint in line


def test_variables_that_are_not_options_are_left_alone() -> None:
    environ = {
        "KVGATE_CONFIG": "x",
        "KVGATE_CACHE_DIR": "x",
        "KVGATE_TEST_ANYTHING": "x",
        "KVGATE_SERVICE_HOST": "10.0.0.1",  # Kubernetes sets these for a service called kvgate
        "KVGATE_SERVICE_PORT_HTTP": "80",
        "KVGATE_PORT": "tcp://10.0.0.1:80",
        "KVGATE_PORT_80_TCP_ADDR": "10.0.0.1",
        "OTHER": "x",
    }
    assert load(None, environ=environ) == Config()


def test_each_broken_json_is_named() -> None:
    found = messages({"KVGATE_TENANTS": "oops", "KVGATE_PRICES": "{", "KVGATE_SERVER": "3"})
    assert found == [
        "KVGATE_PRICES: prices: must be JSON, e.g. [] or {}",
        "KVGATE_SERVER: server: must be a mapping",
        "KVGATE_TENANTS: tenants: must be JSON, e.g. [] or {}",
    ]


def test_a_missing_key_inside_json_is_the_variables_fault() -> None:
    (line,) = messages({"KVGATE_BACKENDS": '[{"name": "u", "base_url": "http://u"}]'})
    assert line == "KVGATE_BACKENDS: backends.0.models: is missing"


def test_a_flag_is_named_before_the_variable_and_the_line() -> None:
    document = Document({"server": {"port": 1}}, {("server",): 1, ("server", "port"): 2})
    environ = {"KVGATE_SERVER__PORT": "2", "KVGATE_SERVER__HOST": "h"}
    flags: dict[str, object] = {"server.port": 3, "server.log_level": "debug"}
    sources, problems = Sources.collect(Config, document, environ, flags)
    assert not problems
    assert sources.from_flags == {"server": {"port": 3, "log_level": "debug"}}
    assert sources.at(("server", "port"), "m").variable == "--port"
    assert sources.at(("server", "log_level"), "m").variable == "--log-level"
    assert sources.at(("server", "host"), "m").variable == "KVGATE_SERVER__HOST"
    assert sources.at(("server", "workers"), "m").line == 1
    assert str(sources.at(("store", "x"), "m")) == "store.x: m"


def test_overlay_changes_neither_side() -> None:
    below, above = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2], "e": None}
    assert overlay(below, above) == {"a": {"b": 3, "c": 2}, "d": [2], "e": None}
    assert below == {"a": {"b": 1, "c": 2}, "d": [1]}
    assert above == {"a": {"b": 3}, "d": [2], "e": None}
