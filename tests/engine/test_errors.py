"""Whose fault it is, and what the client reads."""

from engine.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    ModelLoadError,
    NotReadyError,
    OverloadedError,
    RequestError,
    StartError,
    UnknownModelError,
)


def test_all_four_members_are_always_there() -> None:
    assert EngineError("It broke.").as_json() == {
        "error": {
            "message": "It broke.",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }
    error = RequestError("n must be an integer.", param="n", code="invalid_type").as_json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "n",
        "invalid_type",
    )


def test_too_long_names_both_numbers_and_the_field() -> None:
    error = ContextLengthError.of(capacity=8, prompt=7, answer=4, param="prompt")
    assert "maximum context length is 8 tokens" in str(error)
    assert "11 tokens (7 in the messages, 4 in the completion)" in str(error)
    assert (error.status, error.param) == (400, "prompt")


def test_every_kind_has_its_status() -> None:
    assert UnknownModelError("x").status == 404
    assert OverloadedError("x").status == NotReadyError("x").status == 503
    assert OverloadedError.retry_after_s is not None
    assert EngineError.status == 500


def test_what_keeps_the_engine_from_starting_is_one_family() -> None:
    assert issubclass(ConfigError, StartError)
    assert issubclass(ModelLoadError, StartError)
