"""The sections: strict about keys, final once read."""

import pytest
from pydantic import ValidationError

from gateway.config_sections import Backend, Engine, Server, Tenant, Tiers


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
