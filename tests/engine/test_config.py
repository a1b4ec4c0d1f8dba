"""Options: flags over environment over defaults, and complaints that name what was given."""

import pytest

from engine.config import EngineConfig, parse_config, size_bytes, usage
from engine.errors import ConfigError


def test_flags_go_before_the_environment_and_that_before_defaults() -> None:
    environment = {
        "KVGATE_ENGINE__PORT": "9000",
        "KVGATE_ENGINE__PREFIX_CACHE": "0",
        "KVGATE_ENGINE__REPLICAS": "1",  # the gateway's own
    }
    config = parse_config(["--port", "9001", "--kv-memory=2GiB"], environment)
    assert config == EngineConfig(port=9001, prefix_cache=False, kv_memory=2 << 30)
    assert parse_config([], {}) == EngineConfig()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 1 << 30),
        ("512 MiB", 512 << 20),
        ("1.5kB", 1500),
        ("4096", 4096),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "x"], "--port: must be a whole number from 0 to 65535, not 'x'"),
        (["--port", "70000"], "--port: must be a whole number"),
        (["--kv-memory", "lots"], "--kv-memory: must be a size such as 512MiB or 1GiB, not 'lots'"),
        (["--device", "tpu"], "--device: must be one of auto, cpu, cuda, not 'tpu'"),
        (["--prefix-cache", "maybe"], "--prefix-cache: must be true or false"),
        (["--verify-share", "all"], "--verify-share: must be a number from 0 to 1, not 'all'"),
        (["--verify-share", "1.5"], "--verify-share: must be a number from 0 to 1"),
        (["--verify-share", "nan"], "--verify-share: must be a number from 0 to 1"),
        (["--threads", "0"], "--threads: must be a whole number from 1 to 1024"),
        (
            ["--block-tokens", "48"],
            "--block-tokens: must be a power of two from 8 to 128, not '48'",
        ),
        (["--block-tokens", "256"], "--block-tokens: must be a whole number from 8 to 128"),
        (["--model", " "], "--model: must not be empty"),
        (["--no-such"], "--no-such: no such option"),
        (["port"], "port: no such option"),
        (["--port"], "--port: needs a value"),
    ],
)
def test_a_bad_option_is_named(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(arguments, {})
    assert str(caught.value).startswith(complaint)


def test_a_bad_environment_variable_is_named_as_such() -> None:
    with pytest.raises(ConfigError, match="KVGATE_ENGINE__DTYPE: must be one of"):
        parse_config([], {"KVGATE_ENGINE__DTYPE": "int3"})


def test_every_option_is_in_the_help() -> None:
    assert "--kv-memory" in usage()
    assert parse_config(["--threads", "auto", "--port-file", "p"], {}).port_file == "p"
