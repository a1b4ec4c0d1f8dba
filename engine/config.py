"""What the operator asked for: command line over environment over defaults.

Every option of the engine is a flag (`--kv-memory 2GiB`) and an environment variable
(`KVGATE_ENGINE__KV_MEMORY=2GiB`), with one parser for both, so that a bad value is answered with the
name under which it was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from engine.errors import ConfigError

ENV_PREFIX = "KVGATE_ENGINE__"
PRESETS = {"short": 4096, "medium": 8192, "long": 16384}
"""Names of usual context lengths, in tokens."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|KiB|MB|MiB|GB|GiB|TB|TiB)?")
_UNITS = {"B": 1, "kB": 1000, "KB": 1000, "KiB": 1 << 10, "MB": 10**6, "MiB": 1 << 20}
_UNITS |= {"GB": 10**9, "GiB": 1 << 30, "TB": 10**12, "TiB": 1 << 40}
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def size_bytes(text: str) -> int:
    """`1GiB`, `512 MB`, `1073741824` as bytes. Raises `ValueError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        message = "must be a size such as 512MiB or 1GiB"
        raise ValueError(message)
    return int(float(match[1]) * _UNITS[match[2] or "B"])


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        message = "must be true or false"
        raise ValueError(message)
    return word in _TRUE


def _whole(low: int, high: int = 2**31) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()) or not low <= int(text) <= high:
            message = f"must be a whole number from {low} to {high}"
            raise ValueError(message)
        return int(text)

    return parse


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:  # false for NaN as well
        message = "must be a number from 0 to 1"
        raise ValueError(message)
    return share


def _power_of_two(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = _whole(low, high)(text)
        if number.bit_count() != 1:
            message = f"must be a power of two from {low} to {high}"
            raise ValueError(message)
        return number

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            message = f"must be one of {', '.join(words)}"
            raise ValueError(message)
        return text

    return parse


def _threads(text: str) -> int:
    return 0 if text == "auto" else _whole(1, 1024)(text)


def _tokens(text: str) -> int:
    """A number of tokens, or the name of a usual one."""
    return PRESETS[text] if text in PRESETS else _whole(1)(text)


def _text(text: str) -> str:
    if not text.strip():
        message = "must not be empty"
        raise ValueError(message)
    return text


def _option(parse: Callable[[str], Any], default: Any, why: str) -> Any:
    return field(default=default, metadata={"parse": parse, "why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All options. Sizes in bytes; 0 threads means as many as there are cores."""

    model: str = _option(
        _text, "smollm2-135m-instruct", "name of a known model, a .gguf file, or a folder"
    )
    served_name: str | None = _option(
        _text, None, "model id to answer to; default: made of the model's name or file"
    )
    device: str = _option(_one_of("auto", "cpu", "cuda"), "auto", "where the model runs")
    dtype: str = _option(
        _one_of("auto", "float32", "bfloat16"), "auto", "of weights and activations"
    )
    kernels: str = _option(
        _one_of("auto", "native", "torch"),
        "auto",
        "what multiplies; native: C for CPUs, weights in 4 or 8 bits; auto: native where it serves",
    )
    kv_dtype: str = _option(
        _one_of("auto", "bf16", "fp8"),
        "auto",
        "of kept KV; auto: as dtype, fp8: half the memory (absorb: 0.56)",
    )
    mla: str = _option(
        _one_of("auto", "naive", "absorb"),
        "auto",
        "what latent attention keeps: absorb (auto) the latent, naive every head's KV",
    )
    max_model_len: int = _option(
        _tokens, 8192, "prompt and answer together, in tokens; or short, medium, long"
    )
    prefix_cache: bool = _option(_boolean, True, "reuse KV of prompts with the same beginning")
    block_tokens: int = _option(  # key tiles are whole blocks: engine.batch
        _power_of_two(8, 128), 32, "tokens of a KV block, a power of two: the grain of reuse"
    )
    kv_memory: int = _option(size_bytes, 1 << 30, "of keys and values, as 1GiB")
    kv_host_memory: int = _option(
        size_bytes, 2 << 30, "of KV beside a GPU's own; on a CPU there is one pool, kv_memory"
    )
    kv_disk_path: str | None = _option(
        _text, None, "folder for KV that outlives the process; one for each model"
    )
    kv_disk_max: int = _option(size_bytes, 8 << 30, "of KV on disk, as 8GiB")
    tensor_parallel: int = _option(
        _whole(1, 64), 1, "processes that share the model's heads; each has kv_memory of its own"
    )
    threads: int = _option(_threads, 0, "of the model's arithmetic, or auto")
    chunk_tokens: int = _option(_whole(16, 8192), 128, "rows of one tile, the grain of prefill")
    max_sequences: int = _option(_whole(1, 4096), 32, "that run at once; others wait")
    speculate_tokens: int = _option(
        _whole(0, 64), 8, "guesses checked beside a token, at most; the answer is the same. 0: none"
    )
    max_waiting: int = _option(_whole(0), 512, "that may wait; more are answered 503")
    verify_share: float = _option(
        _share, 0.0, "of calls that reused KV: computed again behind them without, and compared"
    )
    host: str = _option(_text, "127.0.0.1", "address to listen on")
    port: int = _option(_whole(0, 65535), 8081, "0: the system chooses, see --port-file")
    port_file: str | None = _option(_text, None, "written with the port once the server listens")
    parent_pid: int | None = _option(_whole(1), None, "end when this process has ended")
    log_level: str = _option(
        _one_of("debug", "info", "warning", "error"), "info", "of messages on standard error"
    )
    log_format: str = _option(
        _one_of("console", "json"), "console", "of messages; json: one object per line"
    )


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_flags(config: EngineConfig) -> list[str]:
    """The command line that gives this configuration again."""
    flags = []
    for option in fields(EngineConfig):
        value = getattr(config, option.name)
        if value != option.default:
            flags.append(f"{flag(option.name)}={value}")
    return flags


def usage() -> str:
    """The help text: every option, its default and one line of why."""
    lines = ["python -m engine [options]", "python -m engine plan --help", ""]
    for option in fields(EngineConfig):
        default = "" if option.default in (None, MISSING) else f" [{option.default}]"
        lines.append(f"  {flag(option.name):18} {option.metadata['why']}{default}")
    lines += ["", f"Each is also an environment variable: {ENV_PREFIX}MODEL, {ENV_PREFIX}PORT, …"]
    return "\n".join(lines)


def parse_config(arguments: Sequence[str], environment: Mapping[str, str]) -> EngineConfig:
    """Options from flags, then the environment. Raises `ConfigError` naming the option."""
    options = {option.name: option for option in fields(EngineConfig)}
    given: dict[str, tuple[str, str]] = {}  # name -> (as it was called, its text)
    for name in options:
        variable = ENV_PREFIX + name.upper().replace(
            "KV_DISK_", "KV_DISK__"
        )  # kv_disk: {path, max}
        if variable in environment:
            given[name] = (variable, environment[variable])
    given |= _flags(arguments, options)
    values: dict[str, Any] = {}
    for name, (called, text) in given.items():
        try:
            values[name] = options[name].metadata["parse"](text)
        except ValueError as error:
            complaint = f"{called}: {error}, not {text!r}"
            raise ConfigError(complaint) from None
    return EngineConfig(**values)


def _flags(arguments: Sequence[str], options: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    given: dict[str, tuple[str, str]] = {}
    rest = list(arguments)
    while rest:
        called, separator, text = rest.pop(0).partition("=")
        name = called.removeprefix("--").replace("-", "_")
        if not called.startswith("--") or name not in options:
            message = f"{called}: no such option; see --help"
            raise ConfigError(message)
        if not separator:
            if not rest:
                message = f"{called}: needs a value"
                raise ConfigError(message)
            text = rest.pop(0)
        given[name] = (called, text)
    return given
