"""A key covers the model, the salts and every token before."""

import pytest

from engine.kv.chain import KEY_BYTES, Chains
from engine.kv.salts import Layered, Salt

TOKENS = list(range(40))


def keys(tokens: list[int], salt: Salt, model: bytes = b"m") -> list[bytes]:
    chain: list[bytes] = []
    Chains(model, 4).extend(chain, tokens, salt)
    return chain


def test_a_chain_has_a_key_for_each_full_block_and_grows_as_it_would_have_been_made() -> None:
    whole = keys(TOKENS[:19], "s")
    assert [len(key) for key in whole] == [KEY_BYTES] * 4
    for salt in ("s", Layered("s", "t", 2)):
        for length in range(0, 20, 3):
            grown = keys(TOKENS[:length], salt)
            Chains(b"m", 4).extend(grown, TOKENS[:19], salt)
            assert grown == keys(TOKENS[:19], salt)


@pytest.mark.parametrize("at", [0, 5, 15])
def test_one_other_token_changes_every_key_from_its_block_on(at: int) -> None:
    other = [*TOKENS[:at], 99, *TOKENS[at + 1 :]]
    same = [a == b for a, b in zip(keys(TOKENS, "s"), keys(other, "s"), strict=True)]
    assert same == [True] * (at // 4) + [False] * (10 - at // 4)


def test_salts_and_models_have_no_key_in_common() -> None:
    chains = [keys(TOKENS, "s"), keys(TOKENS, "t"), keys(TOKENS, "s", b"n"), keys(TOKENS, "")]
    assert len({key for chain in chains for key in chain}) == 40


def test_a_second_salt_changes_the_keys_from_its_block_on() -> None:
    base = keys(TOKENS, "base")
    ann, bob = keys(TOKENS, Layered("base", "ann", 3)), keys(TOKENS, Layered("base", "bob", 3))
    assert ann[:3] == bob[:3] == base[:3]
    assert not {*ann[3:]} & {*bob[3:]}
    assert not {*ann[3:]} & {*base[3:]}
    assert not {*ann} & {*keys(TOKENS, "ann")}


def test_where_the_second_salt_begins_matters() -> None:
    at = [keys(TOKENS, Layered("base", "ann", blocks))[-1] for blocks in range(10)]
    assert len(set(at)) == 10
