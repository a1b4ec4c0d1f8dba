"""What rows say of an entry."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.store.disk_rows import charge, ends_at, labels, number_of, raw
from policies.keys import Scope
from tests.kit.entries import NOW, meta_of


@given(st.binary(min_size=8, max_size=32), st.binary(min_size=8, max_size=32))
def test_numbers_are_in_the_order_of_keys_and_fit(one: bytes, other: bytes) -> None:
    assert -(2**63) <= number_of(one) < 2**63
    if one[:8] < other[:8]:
        assert number_of(one) < number_of(other)


@given(st.text(), st.text())
def test_bytes_of_text_sort_like_the_text(one: str, other: str) -> None:
    assert (raw(one) < raw(other)) == (one < other)


def test_an_entry_has_a_label_for_each_of_its_names_once() -> None:
    meta = meta_of(
        cache_key="v1:ns:x",
        tags=("a", "a"),
        user="u",
        context="c",
        batch_id="b",
        scope=Scope("shared", "t", context="c"),
    )
    assert sorted(labels(meta)) == [b"bb", b"cc", b"kv1:ns:x", b"nns", b"ta", b"uu"]
    assert labels(meta_of()) == []


@given(st.integers(0, 200_000))
def test_a_larger_answer_is_charged_with_all_its_bytes(body_bytes: int) -> None:
    meta = meta_of()
    charged = charge(meta, 300, body_bytes)
    assert body_bytes + 300 < charged < 1.5 * body_bytes + 6000


def test_the_ends_at_counts_the_stale_rules_in() -> None:
    meta = meta_of(ttl_s=10.0, stale_while_revalidate_s=5.0, stale_if_error_s=7.0)
    assert ends_at(meta) == NOW + 17
    assert ends_at(meta_of(ttl_s=float("nan"))) == float("inf")
