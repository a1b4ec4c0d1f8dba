"""The sections: strict about keys, final once read."""

import pytest
from pydantic import ValidationError

from gateway.config_sections import Backend, Engine, Pattern, Server, Tenant, Tiers, Warm


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Server.model_validate({"hots": "x"})


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Engine().model = "other"


def test_a_name_goes_into_logs_and_metrics_so_it_is_plain() -> None:
    for name in ("", "a b", "a\n", "é", "-a", "a" * 65):
        with pytest.raises(ValidationError):
            Backend.model_validate({"name": name, "base_url": "http://u", "models": ["m"]})


def test_a_tenant_without_keys_could_never_ask() -> None:
    with pytest.raises(ValidationError, match="api_keys"):
        Tenant.model_validate({"name": "a", "api_keys": []})


def test_an_upstream_without_models_could_never_answer() -> None:
    with pytest.raises(ValidationError, match="models"):
        Backend.model_validate({"name": "u", "base_url": "http://u", "models": []})


def test_tiers_come_in_their_order() -> None:
    tier = {"ttl": 1, "priority": "low"}
    tiers = Tiers.model_validate({"cold": tier, "warm": tier, "hot": tier})
    assert list(tiers.by_name()) == ["hot", "warm", "cold"]


def test_a_pattern_that_cannot_be_asked_is_found_when_the_configuration_is_read() -> None:
    for wish, said in (
        ({"variations": [{"content": "?"}]}, r"variations\[0\].role is required"),
        ({"variations": ["?"], "base_messages": [{}]}, r"base_messages\[0\].role is required"),
        ({"variations": ["?"], "params": {"messages": []}}, "params.messages has a place"),
    ):
        with pytest.raises(ValidationError, match=said):
            Pattern.model_validate({"id": "faq", **wish})
    with pytest.raises(ValidationError, match="two patterns have the id faq"):
        Warm.model_validate({"patterns": [{"id": "faq"}, {"id": "faq"}]})


def test_a_pattern_is_a_list_of_calls_and_one_without_variations_is_none() -> None:
    pattern = Pattern.model_validate({"id": "faq", "variations": ["?"], "ttl": "1d"})
    (item,) = pattern.items()
    assert (item.pattern, item.body["kv_cache"]["ttl"]) == ("faq", 86400)
    assert Pattern.model_validate({"id": "faq"}).items() == ()
