"""Which backend computes a call, and under which name."""

import pytest

from gateway.errors import ClientFault
from gateway.router import Router, Served, Target
from tests.kit.scripted_backend import ScriptedBackend

ONE, TWO, ANY = (ScriptedBackend(name=name) for name in ("one", "two", "any"))
SERVED = [Served(ONE, ["a", "b"]), Served(TWO, ["b", "c"])]


def test_a_model_is_computed_where_it_is_served() -> None:
    router = Router(SERVED, {})
    assert router.target("a") == Target(ONE, "a")
    assert router.target("c") == Target(TWO, "c")


def test_of_two_backends_with_the_same_model_the_first_one_has_it() -> None:
    assert Router(SERVED, {}).target("b") == Target(ONE, "b")


def test_default_is_the_first_model_served() -> None:
    assert Router(SERVED, {}).target("default") == Target(ONE, "a")


def test_an_alias_stands_for_its_model_over_several_steps() -> None:
    router = Router(SERVED, {"x": "y", "y": "c", "deepseek-chat": "default"})
    assert router.target("x") == Target(TWO, "c")
    assert router.target("deepseek-chat") == Target(ONE, "a")


def test_a_model_that_is_served_is_not_hidden_by_an_alias() -> None:
    assert Router(SERVED, {"a": "c"}).target("a") == Target(ONE, "a")


def test_what_nobody_serves_by_name_goes_to_the_backend_for_any_name() -> None:
    router = Router([*SERVED, Served(ANY, ["*"]), Served(TWO, ["*"])], {"fast": "gpt-small"})
    assert router.target("a").backend is ONE
    assert router.target("gpt-x") == Target(ANY, "gpt-x")
    assert router.target("fast") == Target(ANY, "gpt-small")
    assert router.catch_all is ANY


def test_where_no_model_has_a_name_default_keeps_the_clients_own() -> None:
    router = Router([Served(ANY, ["*"])], {"deepseek-chat": "default"})
    assert router.target("deepseek-chat") == Target(ANY, "deepseek-chat")
    assert router.target("default") == Target(ANY, "default")


@pytest.mark.parametrize("name", ["nope", "ring", "", "dangling"])
def test_a_model_that_nobody_serves_is_the_clients_mistake(name: str) -> None:
    router = Router(SERVED, {"ring": "gnir", "gnir": "ring", "dangling": "gone"})
    with pytest.raises(ClientFault) as caught:
        router.target(name)
    error = caught.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_a_name_is_echoed_short_and_harmless() -> None:
    with pytest.raises(ClientFault) as caught:
        Router(SERVED, {}).target("x\r\n\u202e" + "y" * 10_000)
    assert len(caught.value.message) < 200
    assert caught.value.message.isprintable()


def test_what_is_served_can_be_listed() -> None:
    router = Router(SERVED, {"x": "a"})
    assert list(router.models()) == ["a", "b", "c"]
    assert router.aliases() == {"x": "a"}
    assert router.backends == (ONE, TWO)
    assert router.catch_all is None
    assert repr(router) == "<Router 3 models, 2 backends>"
