"""Text to ids and back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ModelLoadError
from engine.text.detokenizer import Detokenizer
from engine.text.tokenizer import Tokenizer, from_folder, from_gguf
from engine.weights.gguf import GgufFile
from tests.kit.tiny_gguf import write_gguf
from tests.kit.tiny_model import TinyLlama

HERE = Path("here.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama().write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def words(folder: Path) -> Tokenizer:
    return from_folder(folder)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return GgufFile(write_gguf(TinyLlama(), path)).metadata


@given(text=st.text())
def test_every_text_comes_back_whole(words: Tokenizer, text: str) -> None:
    ids = words.encode(text, add_bos=False)
    assert words.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "the cat",
        "  two\n\n lines\t",
        "你好，世界",
        "👩‍👩‍👧 ü e\u0301",
        "a<|im_end|>b",
        "x" * 5000,
    ],
)
def test_ids_are_those_of_the_librarys_own_encode(
    words: Tokenizer, text: str, *, add_bos: bool
) -> None:
    plain = words._backend.encode(text, add_special_tokens=add_bos).ids
    assert words.encode(text, add_bos=add_bos) == plain


@given(text=st.text())
def test_the_bytes_of_the_tokens_make_the_text_as_it_streams(words: Tokenizer, text: str) -> None:
    stream = Detokenizer()
    parts = [
        stream.push(words.token_bytes(i, skip_special=False)).text
        for i in words.encode(text, add_bos=False)
    ]
    assert "".join(parts) + stream.finish().text == text


def test_special_tokens_written_out_become_special_tokens(words: Tokenizer) -> None:
    ids = words.encode("a<|im_end|>b", add_bos=False)
    assert 2 in ids
    assert words.decode(ids, skip_special=True) == "ab"
    assert words.decode(ids, skip_special=False) == "a<|im_end|>b"


def test_an_id_that_is_no_token_stands_for_nothing(words: Tokenizer) -> None:
    assert words.token_bytes(10**6) == b""


def test_half_a_character_is_shown_as_such(words: Tokenizer) -> None:
    first, *_ = words.encode("ü", add_bos=False)
    assert words.token_bytes(first) == b"\xc3"
    assert words.decode([first], skip_special=True) == "\ufffd"


def test_its_line_for_operators(words: Tokenizer) -> None:
    assert repr(words) == "Tokenizer(266 tokens, ends at [2])"


def test_a_gguf_that_wants_a_first_token_gets_it_in_plain_prompts_only(
    metadata: dict[str, object],
) -> None:
    without = from_gguf(metadata, HERE)
    wanting = from_gguf(metadata | {"tokenizer.ggml.add_bos_token": True}, HERE)
    assert wanting.encode("the", add_bos=True) == [1, *without.encode("the", add_bos=True)]
    assert wanting.encode("the", add_bos=False) == without.encode("the", add_bos=False)


def test_smollms_digits_are_single_and_gpt2s_are_not(metadata: dict[str, object]) -> None:
    tokens = [*metadata["tokenizer.ggml.tokens"], "12"]  # type: ignore[misc]  # a list, as written
    merges = [*metadata["tokenizer.ggml.merges"], "1 2"]  # type: ignore[misc]  # same
    more = metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
    single = from_gguf(more, HERE).encode("12", add_bos=False)
    paired = from_gguf(more | {"tokenizer.ggml.pre": "gpt-2"}, HERE).encode("12", add_bos=False)
    assert (len(single), len(paired)) == (2, 1)


def test_a_turn_ends_at_every_token_that_ends_turns(metadata: dict[str, object]) -> None:
    assert from_gguf(metadata, HERE).end_tokens == {0, 2}
    assert from_gguf(metadata | {"tokenizer.ggml.eot_token_id": 7}, HERE).end_tokens == {0, 2, 7}


def test_user_defined_tokens_are_whole_and_visible(metadata: dict[str, object]) -> None:
    types = list(metadata["tokenizer.ggml.token_type"])  # type: ignore[call-overload]  # a list
    types[300] = 4
    words = from_gguf(metadata | {"tokenizer.ggml.token_type": types}, HERE)
    assert words.encode("<unused300>", add_bos=False) == [300]
    assert words.decode([300], skip_special=True) == "<unused300>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer 'llama' with pre-tokenizer 'smollm'"),
        ({"tokenizer.ggml.pre": "chatglm"}, "a folder with tokenizer.json works"),
        ({"tokenizer.ggml.tokens": []}, "no vocabulary"),
        ({"tokenizer.ggml.tokens": "a"}, "tokenizer.ggml.tokens is no list"),
        ({"tokenizer.ggml.merges": ["nothing known"]}, r"tokenizer\.ggml\.merges"),
        ({"tokenizer.chat_template": "{% for %}"}, "the chat template does not compile"),
    ],
)
def test_a_gguf_vocabulary_that_is_not_known_is_refused(
    metadata: dict[str, object], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=f"here.gguf: .*{message}"):
        from_gguf(metadata | changes, HERE)


def test_a_gguf_without_a_template_has_no_chat(metadata: dict[str, object]) -> None:
    bare = {key: value for key, value in metadata.items() if key != "tokenizer.chat_template"}
    assert from_gguf(bare, HERE).chat is None


def settings(tmp_path: Path, **changes: object) -> Tokenizer:
    folder = TinyLlama().write(tmp_path / "tiny")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return from_folder(folder)


def test_end_tokens_come_from_all_the_files_that_name_them(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "tiny")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert from_folder(folder).end_tokens == {0, 2}


def test_special_tokens_may_be_written_as_objects(tmp_path: Path) -> None:
    words = settings(
        tmp_path, eos_token={"content": "<|endoftext|>"}, chat_template="{{ eos_token }}"
    )
    assert words.end_tokens == {0, 2}
    assert words.chat is not None
    assert words.chat.render([{"role": "user", "content": ""}]) == "<|endoftext|>"


def test_the_default_one_of_several_templates_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    words = settings(tmp_path, chat_template=named)
    assert words.chat is not None
    assert words.chat.render([]) == "d"


def test_a_template_in_its_own_file_wins(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("own file")
    chat = from_folder(folder).chat
    assert chat is not None
    assert chat.render([]) == "own file"


def test_a_sentencepiece_vocabulary_is_read_with_spaces_and_bytes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.BPE({"\u2581the": 0, "<0xC3>": 1, "\u2581": 2, "x": 3}, []))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    words = from_folder(tmp_path)
    assert [words.token_bytes(i) for i in range(4)] == [b" the", b"\xc3", b" ", b"x"]


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "Other"}}'])
def test_a_tokenizer_file_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json: "):
        from_folder(tmp_path)


def test_settings_that_are_no_json_are_named(folder: Path, tmp_path: Path) -> None:
    other = TinyLlama().write(tmp_path / "tiny")
    (other / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json: not JSON"):
        from_folder(other)
