"""What can go wrong in the engine, and whose fault it is.

EngineError
├── RequestError            the client's fault; status 400 unless said otherwise
│   ├── TokenError          401 invalid_api_key: a command without the gateway's token
│   ├── ContextLengthError  400 context_length_exceeded, both numbers in the message
│   └── UnknownModelError   404 model_not_found
├── OverloadedError         503, with Retry-After: nothing is wrong, come back
├── NotReadyError           503, with Retry-After: the model is still being loaded, or is leaving
├── GenerationError         500: the step that computed this request failed
└── StartError              the operator's; the process ends with exit code 78 and one line
    ├── ConfigError         an option or an environment variable
    ├── MissingExtraError   a library that is not installed, or cannot be loaded
    └── ModelLoadError      the model's files; exit code 75 if only the network is missing (`engine.weights.fetch`)
"""

from __future__ import annotations

from typing import Any


class EngineError(Exception):
    """Base of all. `status`, `type`, `code` and `param` are those of OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    param: str | None = None
    retry_after_s: int | None = None

    def as_json(self) -> dict[str, Any]:
        """OpenAI's error body; all four members are always there."""
        error = {
            "message": str(self),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


class RequestError(EngineError):
    """The client's fault: a field is missing, of the wrong type or out of range."""

    status = 400
    type = "invalid_request_error"
    code: str | None = "invalid_value"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class TokenError(RequestError):
    """The engine belongs to a gateway, and this is not it."""

    status = 401
    type = "authentication_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key")


class ContextLengthError(RequestError):
    """Prompt and answer do not fit the model."""

    def __init__(self, message: str, *, param: str = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")

    @classmethod
    def of(
        cls, *, capacity: int, prompt: int, answer: int, param: str = "messages"
    ) -> ContextLengthError:
        """With the numbers, in OpenAI's words."""
        return cls(
            f"This model's maximum context length is {capacity} tokens. However, you requested"
            f" {prompt + answer} tokens ({prompt} in the messages, {answer} in the completion)."
            " Please reduce the length of the messages or completion.",
            param=param,
        )

    @classmethod
    def at_least(cls, *, capacity: int, prompt: int, param: str = "messages") -> ContextLengthError:
        """For a prompt that is too long however its text falls into tokens."""
        return cls(
            f"This model's maximum context length is {capacity} tokens. However, your {param}"
            f" has at least {prompt} tokens. Please reduce its length.",
            param=param,
        )


class UnknownModelError(RequestError):
    """The model named is not the one served here."""

    status = 404

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model {model!r} does not exist here.", param="model", code="model_not_found"
        )


class OverloadedError(EngineError):
    """The waiting queue is full."""

    status = 503
    code: str | None = "overloaded"
    retry_after_s = 1


class NotReadyError(EngineError):
    """The model is being loaded, or the engine is shutting down."""

    status = 503
    code: str | None = "not_ready"
    retry_after_s = 2


class GenerationError(EngineError):
    """The step that computed this request failed; others go on."""

    code: str | None = "generation_failed"


class StartError(EngineError):
    """The engine cannot start as it was asked to; one readable line.

    `exit_code` is of sysexits.h: 78 (EX_CONFIG), another start ends the same way; 75 (EX_TEMPFAIL), it may not.
    """

    exit_code = 78


class MissingExtraError(StartError):
    """A library of the engine is not there."""

    @classmethod
    def of(cls, error: Exception) -> MissingExtraError:
        """For what an import of the engine's own modules raised."""
        reason = " ".join(str(error).split()) or type(error).__name__
        return cls(f'the engine needs its extra: pip install "kvgate[engine]" ({reason})')


class ConfigError(StartError):
    """An option or an environment variable is wrong."""


class ModelLoadError(StartError):
    """The model's files are missing, damaged or of an unknown kind."""
