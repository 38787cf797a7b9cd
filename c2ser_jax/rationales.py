"""Rationales written by a language model that is told the true emotion, as the paper did.

Shapes: B texts, S prompt tokens.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.data.cot_text import CotText, explicit_answer
from c2ser_jax.data.emotion_words import label_noun
from c2ser_jax.data.tokenizer import TextTokenizer, check_tokenizer, load_tokenizer
from c2ser_jax.decoding.generate import DecodingConfig, generate
from c2ser_jax.errors import UserError
from c2ser_jax.models.lora import merge
from c2ser_jax.models.qwen2 import Qwen2, Qwen2Config
from c2ser_jax.training.checkpoint import read_description, read_params
from c2ser_jax.training.model_directory import TOKENIZER

KIND = "qwen2"
_BATCH, _MULTIPLE, _NEW_TOKENS = 8, 32, 48
_ASK = {
    "en": 'Somebody says "{said}". The voice is {voice}. The emotion is {noun}. '
    "In one short sentence, the reason why it is {noun}:",
    "zh": "有人说「{said}」。声音：{voice}。情感是{noun}。用一句短话说明为什么是{noun}：",
}


def with_rationales(
    texts: Sequence[CotText], directory: str | os.PathLike[str], *, new_tokens: int = _NEW_TOKENS
) -> list[CotText]:
    """The same answers, their reasons written by the Qwen2 in a model directory, greedily.

    A text for which the model writes nothing keeps its reason.

    Raises:
      UserError: the directory holds no Qwen2 with a tokenizer that fits, or a prompt is too long.
    """
    model, params, tokenizer = _load(Path(directory))
    cfg = DecodingConfig("greedy", new_tokens, 0, 1, 1.1, eos=(tokenizer.eos,), pad=tokenizer.pad)
    made = []
    for first in range(0, len(texts), _BATCH):
        part = texts[first : first + _BATCH]
        tokens, mask = _packed([tokenizer.encode(_question(one)) for one in part])
        embeddings = model.apply({"params": params}, tokens, method="embed")
        found = generate(model, params, embeddings, mask, cfg)
        for row, one in enumerate(part):
            ids = np.asarray(found.tokens)[row, : int(found.lengths[row])]
            made.append(_with_reason(one, _first_sentence(tokenizer.decode(ids.tolist()))))
    return made


def _question(text: CotText) -> str:
    words = [word for word in text.style_words().values() if word]
    return _ASK[text.language].format(
        said=text.transcript,
        voice=", ".join(words) or "-",
        noun=label_noun(text.label, text.language),
    )


def _with_reason(text: CotText, reason: str) -> CotText:
    if not reason:
        return text
    explicit = explicit_answer(text.label, text.language, text.transcript, text.levels(), reason)
    return dataclasses.replace(text, rationale=reason, explicit=explicit)


def _first_sentence(text: str) -> str:
    """The first sentence with letters in it, without tags that an answer could be confused by."""
    text = " ".join(text.replace("<", " ").replace(">", " ").split())
    for mark in ".!?。！？":
        head, found, _ = text.partition(mark)
        text = head + found if found else text
    return text if any(letter.isalpha() for letter in text) else ""


def _packed(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(int32[B, S], bool[B, S]) of `_BATCH` rows, so that few shapes are compiled."""
    longest = max(len(one) for one in sequences)
    tokens = np.zeros((_BATCH, -(-longest // _MULTIPLE) * _MULTIPLE), np.int32)
    mask = np.zeros(tokens.shape, bool)
    mask[:, 0] = True
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return tokens, mask


def _load(directory: Path) -> tuple[Qwen2, Any, TextTokenizer]:
    description = read_description(directory)
    if description.kind != KIND:
        raise UserError(
            f"{directory} holds a model of kind {description.kind!r}; rationales need a Qwen2, "
            "converted by python -m conversions qwen2"
        )
    cfg = Qwen2Config.from_dict(description.model)
    tokenizer = load_tokenizer(directory / TOKENIZER)
    check_tokenizer(tokenizer, cfg.vocabulary)
    params = read_params(directory)
    if cfg.lora is not None:
        params = merge(params, cfg.lora.scale)
        cfg = dataclasses.replace(cfg, lora=None)
    return Qwen2(cfg), params, tokenizer
