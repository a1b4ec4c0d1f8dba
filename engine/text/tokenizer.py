"""The model's own tokenizer, through the `tokenizers` library. Torch-free.

Special tokens written out in a text ("<|im_end|>") become special tokens, in a chat message as well as
in a plain prompt. llama.cpp's server and vLLM do the same: a rendered chat template is one text, in
which what the client wrote and what the template wrote cannot be told apart. Who must not let a user
pose as the system has to filter before the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from engine.errors import ModelLoadError
from engine.text.chat import ChatTemplate

_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF
# a GGUF names one end token; these end a turn as well in the models that have them
_END_TEXTS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")


class Tokenizer:
    """Text to token ids and back.

    end_tokens  ids after which the model has nothing more to say
    chat        the chat template, None for a model without one
    """

    def __init__(
        self,
        backend: Backend,
        *,
        end_tokens: frozenset[int],
        chat: ChatTemplate | None,
        bos_token: int | None,
        byte_level: bool,
    ) -> None:
        self._backend = backend
        self._byte_level = byte_level
        self._bos_token = bos_token
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)
        self._added = {number: token.content for number, token in added.items()}
        self.end_tokens = end_tokens
        self.chat = chat
        self.vocab = backend.get_vocab_size()

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Token ids of a text. `add_bos` begins as the model was trained: not for a rendered chat."""
        # a batch of one: unlike `encode` it lets other threads run meanwhile
        (found,) = self._backend.encode_batch_fast([text], add_special_tokens=add_bos)
        ids: list[int] = found.ids
        if add_bos and self._bos_token is not None:
            return [self._bos_token, *ids]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """The text of some tokens; bytes that are no UTF-8 become U+FFFD."""
        parts = (self.token_bytes(i, skip_special=skip_special) for i in ids)
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        """The bytes a token stands for: part of a character for some. Nothing for an unknown id."""
        if token in self._special and skip_special:
            return b""
        text = self._added.get(token)
        if text is not None:
            return text.encode()
        text = self._backend.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            return b"".join(_BYTE_OF.get(letter) or letter.encode() for letter in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("\u2581", " ").encode()

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab} tokens, ends at {sorted(self.end_tokens)})"


def from_gguf(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Byte-level BPE out of a GGUF's metadata. Raises `ModelLoadError` for another kind."""

    def entry(key: str, kind: type, default: Any = None) -> Any:
        value = metadata.get(f"tokenizer.{key}", default)
        if value is not default and not isinstance(value, kind):
            raise ModelLoadError(f"{path}: metadata tokenizer.{key} is no {kind.__name__}")
        return value

    kind, pre = entry("ggml.model", str), entry("ggml.pre", str, "gpt-2")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ModelLoadError(
            f"{path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not known here"
            f" (gpt2 with {known} is); a folder with tokenizer.json works for every kind"
        )
    tokens, merges = entry("ggml.tokens", list), entry("ggml.merges", list)
    if not tokens or merges is None:
        raise ModelLoadError(f"{path}: no vocabulary")
    types = entry("ggml.token_type", list, [])
    backend = _bpe(tokens, merges, pre, path)
    for special, wanted in ((True, _CONTROL), (False, _USER_DEFINED)):
        texts = [text for text, is_type in zip(tokens, types, strict=False) if is_type == wanted]
        added = [AddedToken(text, special=special, normalized=False) for text in texts]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    bos, eos = entry("ggml.bos_token_id", int), entry("ggml.eos_token_id", int)
    ends = {eos, entry("ggml.eot_token_id", int), *map(backend.token_to_id, _END_TEXTS)}
    template = entry("chat_template", str)
    return Tokenizer(
        backend,
        end_tokens=frozenset(ends - {None}),
        chat=_template(template, path, bos=_text(tokens, bos), eos=_text(tokens, eos)),
        bos_token=bos if entry("ggml.add_bos_token", bool, False) else None,
        byte_level=True,
    )


def from_folder(folder: Path) -> Tokenizer:
    """tokenizer.json, with the settings beside it. Raises `ModelLoadError`."""
    file = folder / "tokenizer.json"
    try:
        backend = Backend.from_file(str(file))
        byte_level = '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])
    except Exception as error:  # the library raises bare Exception
        raise ModelLoadError(f"{file}: {error}") from error
    settings = _optional(folder / "tokenizer_config.json")
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _optional(folder / name).get("eos_token_id")
        ends.update(i for i in (value if isinstance(value, list) else [value]) if i is not None)
    eos = _special(settings.get("eos_token"))
    eos_id = backend.token_to_id(eos) if eos else None
    if eos_id is not None:
        ends.add(eos_id)
    template = settings.get("chat_template")
    separate = folder / "chat_template.jinja"
    if separate.exists():
        template = separate.read_text(encoding="utf-8")
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    bos = _special(settings.get("bos_token"))
    return Tokenizer(
        backend,
        end_tokens=frozenset(ends),
        chat=_template(template, folder, bos=bos, eos=eos),
        bos_token=None,  # tokenizer.json's post-processor knows
        byte_level=byte_level,
    )


def _bpe(tokens: list[str], merges: list[str], pre: str, path: Path) -> Backend:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        model = models.BPE({text: i for i, text in enumerate(tokens)}, pairs)
    except Exception as error:  # the library raises bare Exception
        raise ModelLoadError(f"{path}: tokenizer.ggml.merges: {error}") from error
    backend = Backend(model)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    single_digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([single_digits, level]) if _PRE_TOKENIZERS[pre] else level
    )
    backend.decoder = decoders.ByteLevel()
    return backend


# name in GGUF -> is each digit a word of its own, before GPT-2's splitting
_PRE_TOKENIZERS = {"gpt-2": False, "smollm": True}


def _template(source: str | None, path: Path, *, bos: str, eos: str) -> ChatTemplate | None:
    if source is None:
        return None
    try:
        return ChatTemplate(source, bos_token=bos, eos_token=eos)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _text(tokens: list[str], number: int | None) -> str:
    return tokens[number] if number is not None and 0 <= number < len(tokens) else ""


def _special(value: Any) -> str:
    """A special token as tokenizer_config.json writes it: a string, or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _optional(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path}: not JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _byte_letters() -> dict[str, bytes]:
    """GPT-2's alphabet: every byte has a printable letter (Radford et al., 2019, encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + number): bytes([byte]) for number, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
