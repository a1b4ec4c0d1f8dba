"""Which backend computes a call, and under which name."""

import pytest

from gateway.backends.group import Group
from gateway.errors import ClientFault
from gateway.router import Router, Served, Target
from tests.kit.scripted_backend import ScriptedBackend

ONE, TWO, ANY = (ScriptedBackend(name=name) for name in ("one", "two", "any"))
SERVED = [Served(ONE, ["a", "b"]), Served(TWO, ["b", "c"])]


def test_a_model_is_computed_where_it_is_served() -> None:
    router = Router(SERVED, {})
    assert router.target("a") == Target(ONE, "a")
    assert router.target("c") == Target(TWO, "c")


def test_backends_with_the_same_model_are_a_group_in_the_operators_order() -> None:
    group = Router(SERVED, {}, strategy="least_busy").target("b").backend
    assert isinstance(group, Group)
    assert repr(group) == "<Group by least_busy: one=0 two=0>"


def test_models_that_the_same_backends_serve_share_their_group() -> None:
    router = Router([Served(ONE, ["a", "b", "b"]), Served(TWO, ["b", "a"])], {})
    assert router.target("a").backend is router.target("b").backend
    assert list(router.groups) == [("one", "two")]


def test_a_backend_that_names_a_model_twice_is_no_group() -> None:
    assert Router([Served(ONE, ["a", "a"])], {}).target("a").backend is ONE


def test_what_a_backend_has_lost_and_what_it_holds_every_group_of_it_hears() -> None:
    router = Router([*SERVED, Served(ANY, ["c"])], {})
    router.resize("two", 300)
    router.forget("two")
    router.forget("nobody")
    held = [group._affinity._capacity for group in router.groups.values()]
    assert held == [{"one": 10_000, "two": 3}, {"two": 3, "any": 10_000}]


def test_default_is_the_first_model_served() -> None:
    assert Router(SERVED, {}).target("default") == Target(ONE, "a")


def test_an_alias_stands_for_its_model_over_several_steps() -> None:
    router = Router(SERVED, {"x": "y", "y": "c", "deepseek-chat": "default"})
    assert router.target("x") == Target(TWO, "c")
    assert router.target("deepseek-chat") == Target(ONE, "a")


def test_a_model_that_is_served_is_not_hidden_by_an_alias() -> None:
    assert Router(SERVED, {"a": "c"}).target("a") == Target(ONE, "a")


def test_what_nobody_serves_by_name_goes_to_the_backend_for_any_name() -> None:
    router = Router([*SERVED, Served(ANY, ["*"])], {"fast": "gpt-small"})
    assert router.target("a").backend is ONE
    assert router.target("gpt-x") == Target(ANY, "gpt-x")
    assert router.target("fast") == Target(ANY, "gpt-small")
    assert router.catch_all is ANY


def test_several_backends_for_any_name_are_a_group() -> None:
    router = Router([Served(ANY, ["*"]), Served(TWO, ["c", "*"])], {})
    assert router.catch_all is not None
    assert router.catch_all.name == "any+two"
    assert router.target("gpt-x").backend is router.catch_all


def test_where_no_model_has_a_name_an_alias_of_default_keeps_the_clients_own() -> None:
    router = Router([Served(ANY, ["*"])], {"deepseek-chat": "default"})
    assert router.target("deepseek-chat") == Target(ANY, "deepseek-chat")


def test_default_is_the_first_model_that_a_backend_for_any_name_lists() -> None:
    router = Router([Served(ANY, ["*"]), Served(TWO, ["*"])], {})
    with pytest.raises(ClientFault, match="Ask for a model by its name") as caught:
        router.target("default")  # the word means nothing there
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert router.target("default", named=False).model == "default"  # and is not sent
    router.learn("two", ["t"])
    assert router.target("default").model == "t"
    router.learn("any", ["b", "a"])
    router.learn("any", [])
    assert router.target("default").model == "b"


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
