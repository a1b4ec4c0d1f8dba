"""policies.rules: the shipped tables."""

from policies.rules import MIB, Limits, PrefixRule, default_rules

RULES = default_rules()


def test_the_shipped_tiers_are_those_of_the_guides() -> None:
    table = {
        name: (rule.name, rule.ttl_s, rule.priority, rule.max_bytes // MIB)
        for name, rule in RULES.tiers.items()
    }
    assert table == {
        "hot": ("hot", 300, "high", 256),
        "warm": ("warm", 1800, "medium", 256),
        "cold": ("cold", 7200, "low", 4096),
    }
    assert (RULES.tiers["hot"].stale_while_revalidate_s, RULES.tiers["hot"].stale_if_error_s) == (
        30,
        300,
    )


def test_the_shipped_context_profiles_are_those_of_the_guides() -> None:
    assert {name: (rule.ttl_s, rule.priority) for name, rule in RULES.contexts.items()} == {
        "code_review": (7200, "high"),
        "casual_chat": (1800, "low"),
        "technical_support": (3600, "medium"),
        "documentation": (14400, "high"),
        "*": (3600, "medium"),
    }


def test_the_shipped_prompt_types_and_prefixes_are_those_of_the_guides() -> None:
    assert RULES.prompt_types == {
        "faq": "hot",
        "common_query": "hot",
        "template": "warm",
        "standard": "warm",
        "*": "cold",
    }
    assert RULES.key_prefixes == (PrefixRule("faq:", tier="hot", ttl_s=86400.0),)


def test_the_cache_is_off_and_exact_and_the_tenants_unless_the_operator_says_otherwise() -> None:
    assert (RULES.enabled_default, RULES.match_default, RULES.scope_default) == (
        False,
        "exact",
        "tenant",
    )
    assert Limits() == RULES.limits
    assert (RULES.limits.max_ttl_s, RULES.limits.max_entry_bytes) == (604800, 4 * MIB)


def test_rules_do_not_show_their_secret() -> None:
    assert "kv_secret" not in repr(RULES)
