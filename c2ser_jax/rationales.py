"""Rationales written by a language model that is told the true emotion, as the paper did.

Shapes: B texts, S prompt tokens.
"""

import dataclasses
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2ser_jax.data.cot_text import CotText, explicit_answer
from c2ser_jax.data.emotion_statements import stated_emotion
from c2ser_jax.data.emotion_words import label_noun
from c2ser_jax.data.tokenizer import TextTokenizer, check_tokenizer, load_tokenizer
from c2ser_jax.decoding.generate import DecodingConfig, generate
from c2ser_jax.errors import UserError
from c2ser_jax.models.lora import merge
from c2ser_jax.models.qwen2 import Qwen2, Qwen2Config
from c2ser_jax.parallel.rules import unbox
from c2ser_jax.training.checkpoint import flatten, read_description, read_params
from c2ser_jax.training.model_directory import TOKENIZER, check_shapes, reading_config

KIND = "qwen2"
_BATCH, _MULTIPLE, _NEW_TOKENS = 8, 32, 48
_ASK = {
    "en": 'Somebody says "{said}". The voice is {voice}. The emotion is {noun}. '
    "In one short sentence, the reason why it is {noun}:",
    "zh": "有人说「{said}」。声音：{voice}。情感是{noun}。用一句短话说明为什么是{noun}：",
}


def with_rationales(
    texts: Sequence[CotText],
    directory: str | os.PathLike[str],
    *,
    new_tokens: int = _NEW_TOKENS,
    seed: int | None = None,
) -> list[CotText]:
    """The same answers, their reasons written by the Qwen2 in a model directory.

    Greedily, or drawn from `seed` and the text's id, so that a reason doesn't depend on its batch.
    A text keeps its own reason where the model writes nothing, or names another emotion, or where
    the words don't fit its context. Weights in bfloat16 compute in it on accelerators.

    Raises:
      UserError: the directory holds no Qwen2 with a tokenizer that fits.
    """
    model, params, tokenizer = _load(Path(directory))
    cfg = DecodingConfig(
        mode="greedy" if seed is None else "sample", max_new_tokens=new_tokens,
        repetition_penalty=1.1, temperature=0.8, top_p=0.9, eos=(tokenizer.eos,), pad=tokenizer.pad,
    )  # fmt: skip
    questions = [tokenizer.encode(_question(one)) for one in texts]
    most = (model.cfg.max_positions - new_tokens) // _MULTIPLE * _MULTIPLE
    made = list(texts)
    order = [i for i in range(len(texts)) if len(questions[i]) <= most]
    order.sort(key=lambda i: len(questions[i]))
    for first in range(0, len(order), _BATCH):
        places = order[first : first + _BATCH]
        tokens, mask = _packed([questions[i] for i in places])
        key = None if seed is None else _keys(seed, [texts[i].id for i in places])
        embeddings = model.apply({"params": params}, tokens, method="embed")
        found = generate(model, params, embeddings, mask, cfg, key=key)
        written, lengths = np.asarray(found.tokens), np.asarray(found.lengths)
        for row, i in enumerate(places):
            said = tokenizer.decode(written[row, : lengths[row]].tolist())
            made[i] = _with_reason(texts[i], _first_sentence(said))
    return made


def _question(text: CotText) -> str:
    words = [word for word in text.style_words().values() if word]
    return _ASK[text.language].format(
        said=text.transcript,
        voice=", ".join(words) or "-",
        noun=label_noun(text.label, text.language),
    )


def _with_reason(text: CotText, reason: str) -> CotText:
    if not reason or stated_emotion(reason, [text.label]) not in (None, text.label):
        return text
    explicit = explicit_answer(text.label, text.language, text.transcript, text.levels(), reason)
    return dataclasses.replace(text, rationale=reason, explicit=explicit)


def _first_sentence(text: str) -> str:
    """The first sentence with letters in it, without tags that an answer could be confused by."""
    shown = (
        letter if letter.isprintable() and letter not in "<>\ufffd" else " " for letter in text
    )
    text = " ".join("".join(shown).split())
    for mark in ".!?。！？":
        head, found, _ = text.partition(mark)
        text = head + found if found else text
    return text if any(letter.isalpha() for letter in text) else ""


def _keys(seed: int, names: list[str]) -> jax.Array:
    """`_BATCH` keys, each of its text's name."""
    numbers = [zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in names]
    numbers += [0] * (_BATCH - len(names))
    return jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(
        np.array(numbers, np.uint32)
    )


def _packed(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(int32[B, S], bool[B, S]) of `_BATCH` rows, so that few shapes are compiled."""
    longest = max(len(one) for one in sequences)
    tokens = np.zeros((_BATCH, -(-longest // _MULTIPLE) * _MULTIPLE), np.int32)
    mask = np.zeros(tokens.shape, bool)
    mask[:, 0] = True
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return tokens, mask


def check_model(directory: str | os.PathLike[str]) -> tuple[Qwen2Config, TextTokenizer]:
    """Reads what a directory says of itself. Raises `UserError` as `with_rationales` does."""
    directory = Path(directory)
    description = read_description(directory)
    if description.kind != KIND:
        raise UserError(
            f"{directory} holds a model of kind {description.kind!r}; rationales need a Qwen2, "
            "converted by python -m conversions qwen2"
        )
    with reading_config(directory):
        cfg = Qwen2Config.from_dict(description.model)
    tokenizer = load_tokenizer(directory / TOKENIZER)
    check_tokenizer(tokenizer, cfg.vocabulary)
    return cfg, tokenizer


def _load(directory: Path) -> tuple[Qwen2, Any, TextTokenizer]:
    cfg, tokenizer = check_model(directory)
    params = read_params(directory)
    check_shapes(params, _shapes(cfg), directory)
    if cfg.lora is not None:
        params = merge(params, cfg.lora.scale)
        cfg = dataclasses.replace(cfg, lora=None)
    if cfg.param_dtype == "bfloat16" and jax.default_backend() != "cpu":
        cfg = dataclasses.replace(cfg, dtype="bfloat16")
    return Qwen2(cfg), jax.device_put(params), tokenizer


def _shapes(cfg: Qwen2Config) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the model's parameters, without allocating any."""
    tokens = jax.ShapeDtypeStruct((1, 2), np.int32)
    found = jax.eval_shape(Qwen2(cfg).init, jax.random.key(0), tokens)["params"]
    return {path: tuple(leaf.shape) for path, leaf in flatten(unbox(found)).items()}
