"""What the supervisor tells a worker at its start, as the first message on the channel.

Not on the command line and not in the environment: other users of the machine can read the one,
and children inherit the other. The configuration is sent as it was checked, so that workers that
are started later have the same one though the file has changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from gateway.config import Config
from gateway.config_sections import DEFAULT_TABLES, OPEN_TABLES


@dataclass(frozen=True, slots=True)
class Handover:
    """A worker's number from 1 on, the configuration, and the key of the salts of KV blocks."""

    worker: int
    config: Config
    kv_secret: bytes

    def as_dict(self) -> dict[str, Any]:
        """As JSON; :meth:`of` reads it."""
        return {
            "worker": self.worker,
            "config": config_as_dict(self.config),
            "kv_secret": self.kv_secret.hex(),
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """What :meth:`as_dict` wrote."""
        return cls(
            worker=data["worker"],
            config=Config.model_validate(data["config"]),
            kv_secret=bytes.fromhex(data["kv_secret"]),
        )

    def __repr__(self) -> str:
        return f"<Handover to worker {self.worker}>"


def config_as_dict(config: Config) -> dict[str, Any]:
    """What makes the same configuration again. It holds secrets in plain text."""
    said = _set(config)
    for table, defaults in DEFAULT_TABLES.items():
        said[table] = _plain(getattr(config, table))
        if table in OPEN_TABLES:  # a name of the defaults that was taken away stays away
            said[table] |= dict.fromkeys(defaults.keys() - said[table].keys())
    assert Config.model_validate(said) == config
    return said


def _set(section: BaseModel) -> dict[str, Any]:
    """The options that differ from their defaults: some may be written in one way only."""
    return {
        name: _set(value) if isinstance(value, BaseModel) else _plain(value)
        for name, field in type(section).model_fields.items()
        if (value := getattr(section, name)) != _default(field)
    }


def _default(field: Any) -> Any:
    return (
        PydanticUndefined if field.is_required() else field.get_default(call_default_factory=True)
    )


def _plain(value: Any) -> Any:
    match value:
        case BaseModel():
            return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        case SecretStr():
            return value.get_secret_value()
        case bytes():
            return f"sha256:{value.hex()}"
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case tuple() | list():
            return [_plain(inner) for inner in value]
        case _:
            return value
