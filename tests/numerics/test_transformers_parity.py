"""The real model in fp32 answers as transformers does, token for token.

The reference is transformers' LlamaForCausalLM, one prompt at a time, over the dequantised tensors. (Their names and order are ours to get right: in a wrong order neither side
would know the capital of France.)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.request import SamplingParams
from engine.sampler import Sampler
from engine.scheduler import Schedule, Span
from engine.weights.gguf import GgufFile
from tests.kit.stage import Stage, make_stage, sequence

pytestmark = pytest.mark.model

ANSWER_TOKENS = 32
QUESTIONS = [
    "What is the capital of France?",
    "List three colours.",
    "What is 2 + 2? Explain.",
    "Write one sentence about the sea.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "def fibonacci(n):",
    "Was ist der Unterschied zwischen Äpfeln und Birnen?",
    "请用一句话介绍你自己。",
    "How many legs do 12 spiders have in 1999?",
    "Name a planet 🪐 and say why you like it.",
    "Summarise: the quick brown fox jumps over the lazy dog.",
    "What does HTTP status 404 mean?",
    "Continue the series 1, 4, 9, 16,",
    "Why is the sky blue?",
    "Write a haiku about winter.",
    "Is 97 a prime number?",
    "Explain recursion to a child.",
    "What is the boiling point of water in Fahrenheit?",
    "Tell me a joke about programmers.",
    "  \n\tleading space, TABS and\r\nline ends  ",
]
CHATS: list[list[dict[str, str]]] = [
    *([{"role": "user", "content": question}] for question in QUESTIONS),
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Which language is spoken in Brazil?"},
        {"role": "assistant", "content": "Portuguese"},
        {"role": "user", "content": "And in Chile? " + "Think well. " * 40},
    ],
]


@pytest.fixture(scope="module")
def stage(smollm_path: Path) -> Stage:
    return make_stage(smollm_path, dtype=torch.float32, blocks=300)


@pytest.fixture(scope="module")
def reference(smollm_path: Path) -> Any:
    file = GgufFile(smollm_path)
    numbers = file.config
    assert numbers.tied
    config = LlamaConfig(
        vocab_size=numbers.vocab,
        hidden_size=numbers.hidden,
        intermediate_size=numbers.intermediate,
        num_hidden_layers=numbers.layers,
        num_attention_heads=numbers.heads,
        num_key_value_heads=numbers.kv_heads,
        max_position_embeddings=numbers.context_tokens,
        rms_norm_eps=numbers.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": numbers.rope_theta},
        tie_word_embeddings=True,
        dtype=torch.float32,
    )
    weights = {name: file.tensor(name) for name in file.names}
    model, info = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def our_prompts(stage: Stage) -> list[list[int]]:
    template = stage.loaded.tokenizer.chat
    assert template is not None
    return [stage.loaded.tokenizer.encode(template.render(chat), add_bos=False) for chat in CHATS]


@torch.inference_mode()
def our_answers(stage: Stage, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts at once through the shipped runner and sampler, as the engine would run them."""
    greedy = SamplingParams(temperature=0.0)
    per = -(-(max(map(len, prompts)) + ANSWER_TOKENS) // 32)
    ones = [
        sequence(prompt, range(i * per, i * per + per), sampling=greedy)
        for i, prompt in enumerate(prompts)
    ]
    computed = [0] * len(ones)
    for _ in range(ANSWER_TOKENS):
        spans = [
            Span(one, at, len(one.tokens), sample=True)
            for one, at in zip(ones, computed, strict=True)
        ]
        schedule = Schedule(tuple(spans))
        picks = Sampler().pick(stage.runner.forward(schedule), schedule)
        computed = [len(one.tokens) for one in ones]
        for one, pick in zip(ones, picks, strict=True):
            one.tokens.append(pick.token)
    return [one.tokens[len(p) :] for one, p in zip(ones, prompts, strict=True)]


@torch.inference_mode()
def their_choices(model: Any, prompt: list[int], answer: list[int]) -> list[int]:
    """What the reference, greedily, puts after the prompt and after each beginning of the answer.

    If that is the answer, the reference would have generated it: one forward pass instead of 32.
    """
    ids = torch.tensor([prompt + answer[:-1]])
    out = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer))
    choices: list[int] = out.logits[0].argmax(-1).tolist()
    return choices


def test_greedy_answers_in_fp32_are_those_of_transformers(stage: Stage, reference: Any) -> None:
    prompts = our_prompts(stage)
    assert len(prompts) >= 20
    ours = our_answers(stage, prompts)
    assert "Paris" in stage.loaded.tokenizer.decode(ours[0], skip_special=True)
    for chat, prompt, answer in zip(CHATS, prompts, ours, strict=True):
        assert len(answer) == ANSWER_TOKENS
        assert their_choices(reference, prompt, answer) == answer, f"{chat[-1]['content']!r}"
    assert len({tuple(answer) for answer in ours}) > 15, "answers differ from each other"


def test_a_chat_becomes_the_token_ids_that_transformers_makes(
    stage: Stage, smollm_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm_path.parent, gguf_file=smollm_path.name)
    add_digits(tokenizer)
    for chat, ours in zip(CHATS, our_prompts(stage), strict=True):
        theirs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ours == theirs, f"{chat[-1]['content']!r}"


def add_digits(tokenizer: Any) -> None:
    """transformers' GGUF loader leaves out what `tokenizer.ggml.pre: smollm` asks for: single digits."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), plain]
    )


def test_every_digit_is_a_token_of_its_own(stage: Stage) -> None:
    tokenizer = stage.loaded.tokenizer
    ids = tokenizer.encode("in 1999 and 12,345", add_bos=False)
    pieces = [tokenizer.decode([i], skip_special=False) for i in ids]
    assert [p for p in pieces if re.search(r"\d", p)] == list("199912345")
