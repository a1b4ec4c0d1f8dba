"""The configuration as a whole: sources, precedence, contradictions, what policies gets."""

import hashlib
from pathlib import Path

import pytest

from gateway.config import Config, ConfigError, Problem, load
from policies.rules import default_rules

GOOD_KEY = "kv-3f1c7a90b2d84e65a1c0"


def problems_of(
    text: str | None = None,
    *,
    tmp_path: Path | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
) -> tuple[Problem, ...]:
    file = None
    if text is not None:
        assert tmp_path is not None
        file = tmp_path / "config.yaml"
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ=environ or {}, flags=flags)
    return caught.value.problems


def loaded(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load(file, environ=environ)


def test_no_file_and_no_environment_are_the_defaults() -> None:
    assert load(None, environ={}) == Config()


def test_the_defaults_are_the_tables_that_policies_ships() -> None:
    rules, shipped = Config().rules(kv_secret=b""), default_rules()
    for name in ("prompt_types", "contexts", "key_prefixes", "limits", "default_tier", "jitter"):
        assert getattr(rules, name) == getattr(shipped, name)
    assert rules.adaptive_min_messages == 5
    assert rules.enabled_default is False
    for tier in ("hot", "warm", "cold"):
        ours, theirs = rules.tiers[tier], shipped.tiers[tier]
        assert (ours.name, ours.ttl_s, ours.priority) == (
            theirs.name,
            theirs.ttl_s,
            theirs.priority,
        )
        assert ours.stale_while_revalidate_s == theirs.stale_while_revalidate_s
        assert ours.stale_if_error_s == theirs.stale_if_error_s


def test_the_secret_of_the_kv_salts_is_new_each_time_unless_given() -> None:
    first, second = Config().rules(), Config().rules()
    assert len(first.kv_secret) == 32
    assert first.kv_secret != second.kv_secret
    assert Config().rules(kv_secret=b"x").kv_secret == b"x"


def test_the_file_wins_over_the_defaults_and_the_environment_over_the_file(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "server: {port: 1111}\ntiers: {hot: {ttl: 10m}}\n",
        KVGATE_SERVER__PORT="2222",
    )
    assert config.server.port == 2222
    assert config.tiers.hot.ttl == 600
    assert config.tiers.hot.priority == "high"  # laid over the default, not instead of it


def test_flags_win_over_the_environment() -> None:
    config = load(None, environ={"KVGATE_SERVER__PORT": "1"}, flags={"server.port": 2})
    assert config.server.port == 2


def test_environment_variables_may_be_lower_case_nested_json_or_empty() -> None:
    config = load(
        None,
        environ={
            "kvgate_engine__prefix_cache": "0",
            "KVGATE_ALIASES__GPT": "default",
            "KVGATE_CONTEXTS": '{"Code": {"ttl": "1h"}}',
            "KVGATE_CONTEXTS__CODE_REVIEW__TTL": "60",
            "KVGATE_SERVER__HOST": "",
            "KVGATE_STORE__DISK_PATH": "null",
            "KVGATE_TENANTS": f'[{{"name": "a", "api_keys": ["{GOOD_KEY}"]}}]',
            "HOME": "/",
        },
    )
    assert config.engine.prefix_cache is False
    assert config.aliases["gpt"] == "default"
    assert config.aliases["deepseek-chat"] == "default"
    assert config.contexts["Code"].ttl == 3600
    assert config.contexts["code_review"].ttl == 60
    assert config.contexts["code_review"].priority == "high"
    assert config.server.host == "127.0.0.1"
    assert config.store.disk_path is None
    assert config.tenants[0].name == "a"


def test_null_takes_an_entry_of_an_open_table_away(tmp_path: Path) -> None:
    config = loaded(tmp_path, "aliases: {deepseek-chat: null, mine: default}\n")
    assert config.aliases == {"deepseek-coder": "default", "mine": "default"}


def test_a_section_with_every_line_commented_out_is_absent(tmp_path: Path) -> None:
    assert loaded(tmp_path, "server:\n  # port: 1\ntenants:\n") == Config()


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path, "") == Config()
    assert loaded(tmp_path, "# nothing yet\n") == Config()


def test_several_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems_of(
        "servr: {}\nserver:\n  prt: 3\n  port: true\ntiers:\n  hot: {ttl: soon}\n",
        tmp_path=tmp_path,
    )
    assert [(p.path, p.line) for p in found] == [
        ("servr", 1),
        ("server.prt", 3),
        ("server.port", 4),
        ("tiers.hot.ttl", 6),
    ]
    assert found[0].message == "unknown key; did you mean server?"
    assert found[1].message == "unknown key; did you mean server.port?"


def test_the_error_reads_like_a_compilers(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("server:\n  port: 99999\n")
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert str(caught.value) == f"{file}:2: server.port: must be less than or equal to 65535"


def test_what_a_later_version_brings_is_refused_by_name(tmp_path: Path) -> None:
    (found,) = problems_of("defaults: {match: semantic}", tmp_path=tmp_path)
    assert found.message.startswith("not available in this version; ")
    assert found.line == 1
    assert found.path.split(".")[0] == "defaults"


def test_the_engines_tiers_have_a_place_and_a_size(tmp_path: Path) -> None:
    engine = loaded(
        tmp_path, "engine: {kv_host_memory: 1GiB, kv_disk: {path: /x, max: 1MiB}}"
    ).engine
    assert (engine.kv_host_memory, engine.kv_disk.path, engine.kv_disk.max) == (2**30, "/x", 2**20)
    (found,) = problems_of("engine: {kv_disk: {path: ''}}", tmp_path=tmp_path)
    assert found.path == "engine.kv_disk.path"


def test_how_the_engine_keeps_kv_and_how_much_context_it_takes_are_chosen_by_word(
    tmp_path: Path,
) -> None:
    engine = loaded(tmp_path, "engine: {kv_dtype: fp8, mla: naive, max_model_len: long}").engine
    assert loaded(tmp_path, "engine: {tensor_parallel: 2}").engine.tensor_parallel == 2
    assert (engine.kv_dtype, engine.mla, engine.max_model_len) == ("fp8", "naive", 16384)
    assert loaded(tmp_path, "engine: {max_model_len: 500}").engine.max_model_len == 500
    for text in ("kv_dtype: int3", "mla: absorbed", "max_model_len: huge", "max_model_len: 0"):
        (found,) = problems_of(f"engine: {{{text}}}", tmp_path=tmp_path)
        assert found.path == f"engine.{text.split(':')[0]}"


def test_the_documented_neutral_values_of_later_options_are_accepted(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "engine: {kv_dtype: auto, mla: auto, replicas: 1, tensor_parallel: 1,"
        " kv_host_memory: 2GiB, kv_disk: {path: null, max: 8GiB}}\n"
        "server: {workers: 1}\nstore: {redis_url: null}\nwarm: {patterns: []}\n"
        "tiers: {cold: {store: disk, max_bytes: 4GiB}}\n",
    )
    assert config.tiers.cold.store == "disk"
    assert config.rules().tiers["cold"].max_bytes == 4 * 2**30


def test_a_key_is_hashed_while_loading_and_never_shown(tmp_path: Path) -> None:
    digest = hashlib.sha256(GOOD_KEY.encode()).digest()
    config = loaded(
        tmp_path,
        f"tenants: [{{name: a, api_keys: [{GOOD_KEY}]}}, {{name: b, api_keys: ['sha256:{'ab' * 32}']}}]\n"
        "backends: [{name: u, base_url: 'http://u/v1/', models: [m], api_key: sk-upstream-secret}]\n",
    )
    assert config.tenants[0].api_keys == (digest,)
    assert config.tenants[1].api_keys == (b"\xab" * 32,)
    assert config.backends[0].base_url == "http://u/v1"
    shown = repr(config) + str(config) + config.model_dump_json(exclude={"tenants"})
    assert GOOD_KEY not in shown
    assert digest.hex() not in shown
    assert "sk-upstream-secret" not in shown
    assert config.warnings == ()


def test_no_problem_repeats_what_was_typed(tmp_path: Path) -> None:
    found = problems_of(
        "tenants: [{name: a, api_keys: ['sha256:canary', 'canary canary']}]\n"
        "backends: [{name: u, base_url: 'http://u:canary@h/v1', models: [m], api_key: [canary]}]\n"
        "tiers: {hot: {ttl: canary, priority: canary}}\n",
        tmp_path=tmp_path,
        environ={"KVGATE_SERVER__PORT": "canary", "KVGATE_PRICES": "canary"},
    )
    assert len(found) == 8
    assert "canary" not in "".join(map(str, found))


@pytest.mark.parametrize("key", ["changeme", "sk-1234", "short-but-odd"])
def test_a_key_that_can_be_guessed_is_a_warning_not_an_error(key: str, tmp_path: Path) -> None:
    config = loaded(tmp_path, f"server: {{port: 1}}\ntenants:\n- name: a\n  api_keys: [{key}]\n")
    (warning,) = config.warnings
    assert (warning.path, warning.line) == ("tenants.0.api_keys.0", 4)
    assert key not in warning.message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_tenants_loopback_is_served(host: str) -> None:
    assert load(None, environ={"KVGATE_SERVER__HOST": host}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.1"])
def test_without_tenants_nothing_but_loopback_is_served(host: str) -> None:
    (found,) = problems_of(environ={"KVGATE_SERVER__HOST": host})
    assert (found.path, found.variable) == ("server.host", "KVGATE_SERVER__HOST")
    (found,) = problems_of(flags={"server.host": host})
    assert (found.path, found.variable) == ("server.host", "--host")


def test_with_tenants_any_address_is_served(tmp_path: Path) -> None:
    text = f"server: {{host: 0.0.0.0}}\ntenants: [{{name: a, api_keys: [{GOOD_KEY}]}}]\n"
    assert loaded(tmp_path, text).server.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            f"tenants: [{{name: a, api_keys: [{GOOD_KEY}]}}, {{name: a, api_keys: [{GOOD_KEY}2]}}]",
            "tenants.1.name",
        ),
        (
            f"tenants: [{{name: a, api_keys: [{GOOD_KEY}]}}, {{name: b, api_keys: [{GOOD_KEY}]}}]",
            "tenants.1.api_keys.0",
        ),
        (
            "backends: [&u {name: u, base_url: 'http://u/v1', models: [m]}, *u]",
            "backends.1.name",
        ),
        (
            "backends: [{name: embedded, base_url: 'http://u/v1', models: [m]}]",
            "backends.0.name",
        ),
        ("engine: {enabled: false}", "engine.enabled"),
        ("aliases: {a: a}", "aliases.a"),
        ("contexts: {'*': null}", "contexts"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(
    text: str, path: str, tmp_path: Path
) -> None:
    (found,) = problems_of(text, tmp_path=tmp_path)
    assert (found.path, found.line) == (path, 1)


def test_a_tier_in_redis_needs_an_address(tmp_path: Path) -> None:
    text = "tiers:\n  cold: {store: redis}\n"
    (found,) = problems_of(text, tmp_path=tmp_path)
    assert (found.path, found.line) == ("tiers.cold.store", 2)
    assert "store.redis_url" in found.message
    there = loaded(tmp_path, text + "store: {redis_url: 'redis://127.0.0.1:6379/0'}\n")
    assert there.tiers.cold.store == "redis"


def test_a_redis_url_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.config.find_spec", lambda name: None)
    text = "store: {redis_url: 'redis://:secret@127.0.0.1:6379/0'}\n"
    (found,) = problems_of(text, tmp_path=tmp_path)
    assert (found.path, found.line) == ("store.redis_url", 1)
    assert "kvgate[redis]" in found.message
    assert "secret" not in found.message


def test_a_fallback_that_could_never_answer_is_a_mistake(tmp_path: Path) -> None:
    text = "backends: [{name: up, base_url: 'http://up/v1', models: [m, s]}]\n"
    given = text + "aliases: {tiny: s}\nfallbacks: {m: [tiny, s, default]}\n"
    assert loaded(tmp_path, given).fallbacks == {"m": ("tiny", "s", "default")}
    engine = "fallbacks: {gpt-4o: [smollm2-135m-instruct]}\n"
    assert loaded(tmp_path, engine).fallbacks["gpt-4o"] == ("smollm2-135m-instruct",)
    found = problems_of(text + "fallbacks: {m: [s, m, nobody]}\n", tmp_path=tmp_path)
    assert {(p.path, p.message) for p in found} == {
        ("fallbacks.m.1", "is the model itself"),
        ("fallbacks.m.2", "is a model that nobody serves"),
    }
    anybody = text.replace("[m, s]", '["*"]') + "fallbacks: {m: [anything]}\n"
    assert loaded(tmp_path, anybody).fallbacks["m"] == ("anything",)


def test_aliases_may_form_a_chain_but_no_ring(tmp_path: Path) -> None:
    assert loaded(tmp_path, "aliases: {a: b, b: c}\n").aliases["a"] == "b"
    found = problems_of("aliases: {a: b, b: c, c: a}\n", tmp_path=tmp_path)
    assert {p.path for p in found} == {"aliases.a", "aliases.b", "aliases.c"}


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("", True),
        ("backends: [{name: u, base_url: 'http://u/v1', models: [m]}]", False),
        (
            "engine: {enabled: true}\nbackends: [{name: u, base_url: 'http://u/v1', models: [m]}]",
            True,
        ),
        (
            "engine: {enabled: false}\nbackends: [{name: u, base_url: 'http://u/v1', models: [m]}]",
            False,
        ),
    ],
)
def test_the_engine_runs_when_asked_or_when_nothing_else_would(
    text: str, runs: bool, tmp_path: Path
) -> None:
    assert loaded(tmp_path, text).engine_enabled() is runs


def test_a_prefix_may_be_written_with_a_star(tmp_path: Path) -> None:
    rules = loaded(tmp_path, "key_prefixes: {'doc:*': {tier: warm}}\n").rules()
    assert [rule.prefix for rule in rules.key_prefixes] == ["faq:", "doc:"]


def test_a_value_of_the_wrong_shape_says_which_shape_it_wants(tmp_path: Path) -> None:
    found = problems_of(
        "server: 3\ntiers: []\ntenants: {a: b}\naliases: [3]\nprices: {x: 7}\n"
        "engine: {model: ''}\nbackends: [7]\n",
        tmp_path=tmp_path,
    )
    assert [(p.path, p.message) for p in found] == [
        ("server", "must be a mapping"),
        ("tiers", "must be a mapping"),
        ("tenants", "must be a list"),
        ("aliases", "must be a mapping"),
        ("prices.x", "must be a mapping"),
        ("engine.model", "must not be empty"),
        ("backends.0", "must be a mapping"),
    ]


USERS = """
tenants:
  - name: acme
    users:
      - {name: ann, api_keys: [k-ann-0123456789abcdef]}
      - {name: bob, api_keys: [k-bob-0123456789abcdef, test]}
"""


def test_users_of_a_tenant_are_loaded_with_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "kvgate.yaml"
    file.write_text(USERS)
    config = load(file, environ={})
    (tenant,) = config.tenants
    assert [(user.name, len(user.api_keys)) for user in tenant.users] == [("ann", 1), ("bob", 2)]
    assert "k-ann" not in repr(config)
    (doubt,) = config.warnings
    assert "tenants.0.users.1.api_keys.1" in str(doubt)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("k-bob-0123456789abcdef=k-ann-0123456789abcdef", "is a key of tenant acme already"),
        ("name: bob=name: ann", "two users have the name ann"),
        ("users:=user: x\n    old:", "old"),
        ("  - name: acme\n    users:=  - name: acme\n    nobody:", "nobody"),
    ],
)
def test_users_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, change: str, told: str
) -> None:
    file = tmp_path / "kvgate.yaml"
    old, new = change.split("=")
    file.write_text(USERS.replace(old, new))
    with pytest.raises(ConfigError, match=told):
        load(file, environ={})


def test_a_tenant_without_any_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "kvgate.yaml"
    file.write_text("tenants: [{name: acme}]")
    with pytest.raises(ConfigError, match="needs api_keys, or users with api_keys"):
        load(file, environ={})
