"""Sizes, durations, keys and addresses, as people write them."""

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config_values import (
    digest_key,
    one_of,
    parse_auto_or_bool,
    parse_auto_or_count,
    parse_base_url,
    parse_duration,
    parse_redis_url,
    parse_size,
    parse_whole,
    power_of_two,
    weak_key,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0), (300, 300), (0.5, 0.5), ("300", 300), ("30m", 1800), ("2h", 7200), ("1d", 86400),
        ("1w", 604800), ("45s", 45), ("500ms", 0.5), ("1.5h", 5400), (" 30 m ", 1800),
    ],
)  # fmt: skip
def test_a_duration_is_seconds_or_has_a_unit(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [-1, "-1", "", "soon", "1x", "1 2", "1e3", "0x10", True, None, [], float("nan"), float("inf"),
     10**400, "9" * 400, "٣"],
)  # fmt: skip
def test_other_durations_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0), (4096, 4096), ("4096", 4096), ("256MiB", 2**28), ("4 GiB", 2**32), ("1KB", 1000),
        ("1.5KiB", 1536), ("7B", 7), ("1TiB", 2**40), (2.0, 2),
    ],
)  # fmt: skip
def test_a_size_is_bytes_or_has_a_unit(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [-1, "-1MiB", "", "big", "1mb", "1 MiB x", True, None, {}, 1.5, "1.0001KiB", float("nan"),
     float("inf"), 2**61, "9999999TiB"],
)  # fmt: skip
def test_other_sizes_are_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_size(written)


@given(st.text())
def test_no_text_makes_a_parser_fail_otherwise(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_base_url, parse_auto_or_bool, digest_key):
        with suppress(ValueError):
            parse(text)


def test_a_plain_key_and_its_digest_are_the_same_key() -> None:
    digest = hashlib.sha256(b"a-plain-key").digest()
    assert digest_key("a-plain-key") == digest
    assert digest_key("sha256:" + digest.hex()) == digest
    assert digest_key("sha256:" + digest.hex().upper()) == digest
    assert digest_key(digest) == digest


@pytest.mark.parametrize(
    "written", ["", "two words", "ключ", "a\n", "sha256:", "sha256:zz", 7, None]
)
def test_a_key_that_no_header_could_carry_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"key|sha256"):
        digest_key(written)


def test_short_and_well_known_keys_are_weak() -> None:
    assert weak_key("ChangeMe")
    assert weak_key("a" * 15)
    assert weak_key("a" * 16) is None
    assert weak_key("sha256:" + "0" * 64) is None
    assert weak_key(7) is None


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("http://127.0.0.1:9000/v1", "http://127.0.0.1:9000/v1"),
        ("https://u.example/v1/", "https://u.example/v1"),
        ("http://[::1]:1", "http://[::1]:1"),
    ],
)
def test_a_base_url_loses_its_last_slash(written: str, address: str) -> None:
    assert parse_base_url(written) == address


@pytest.mark.parametrize(
    "written",
    ["", "u/v1", "ftp://u/v1", "http://", "http://a:b@u/v1", "http://u/v1?x=1", "http://u/#a",
     "http://u:99999/v1", "http://[::1", 7],
)  # fmt: skip
def test_other_base_urls_are_refused(written: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # urlsplit has messages of its own
        parse_base_url(written)


def test_auto_stands_beside_booleans_and_counts() -> None:
    assert parse_auto_or_bool("auto") == "auto"
    assert parse_auto_or_bool(True) is True
    assert parse_auto_or_bool("off") is False
    assert parse_auto_or_count("auto") == "auto"
    assert parse_auto_or_count("4") == 4
    for no_word in ("maybe", None, 2):
        with pytest.raises(ValueError, match="auto"):
            parse_auto_or_bool(no_word)
    for no_count in (0, -1, 1.5, True, "many"):
        with pytest.raises(ValueError, match="auto"):
            parse_auto_or_count(no_count)


def test_a_boolean_is_no_number() -> None:
    assert parse_whole(7) == 7
    with pytest.raises(ValueError, match="whole number"):
        parse_whole(True)


def test_a_choice_tells_what_is_to_come_from_what_never_was() -> None:
    check = one_of(("memory", "disk"), later=("redis",)).func
    assert check("disk") == "disk"  # type: ignore[call-arg]  # pydantic types both signatures
    with pytest.raises(ValueError, match="not available in this version"):
        check("redis")  # type: ignore[call-arg]  # same
    with pytest.raises(ValueError, match="must be one of memory, disk"):
        check("tape")  # type: ignore[call-arg]  # same
    with pytest.raises(ValueError, match="must be one of"):
        check([])  # type: ignore[call-arg]  # same


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379/0", "rediss://h", "unix:///run/redis.sock"]
)
def test_the_address_of_a_redis_server_is_taken_as_it_is(url: str) -> None:
    assert parse_redis_url(url) == url


@pytest.mark.parametrize("url", ["", "127.0.0.1:6379", "http://h", "redis://", "redis://a b", 5])
def test_what_is_no_address_of_a_redis_server_is_refused(url: object) -> None:
    with pytest.raises(ValueError, match="redis://"):
        parse_redis_url(url)


def test_a_power_of_two_is_just_that() -> None:
    assert [power_of_two(value) for value in (8, 32, 128)] == [8, 32, 128]
    with pytest.raises(ValueError, match="power of two"):
        power_of_two(100)
