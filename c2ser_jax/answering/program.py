"""One program from waveforms to label scores and written answers.

Shapes: B rows, N samples, P prompt tokens, J labels, T tokens of the longest one, K tokens that all
labels' answers begin with, M new tokens at most.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from c2ser_jax.answering.ask import Mode
from c2ser_jax.decoding.generate import generate
from c2ser_jax.decoding.labels import score_labels
from c2ser_jax.decoding.options import DecodingConfig
from c2ser_jax.decoding.scores import is_end
from c2ser_jax.decoding.trie import Trie
from c2ser_jax.models.c2ser import C2ser, C2serConfig, language_model


class Question(flax.struct.PyTreeNode):
    """The tokens of one prompt and of the labels' answers, in one language.

    prompt int32[P], prompt_mask bool[P]; labels int32[J, T], label_mask bool[J, T], the ending
    token included, rivals bool[J, J, T] of `pack_rivals`; lead int32[K], lead_mask bool[K]: what
    all labels' answers begin with.
    """

    prompt: Any
    prompt_mask: Any
    labels: Any
    label_mask: Any
    rivals: Any
    lead: Any
    lead_mask: Any


class Found(flax.struct.PyTreeNode):
    """What a batch was answered.

    scores float32[B, J], log-probabilities among the labels; tokens int32[B, M] and lengths
    int32[B] of the written answer, the ending token counted, with reasoning int32[B], the tokens
    before the sentence that names the label (all that are no ending, where there is none); None in
    mode "labels".
    """

    scores: jax.Array
    tokens: jax.Array | None = None
    lengths: jax.Array | None = None
    reasoning: jax.Array | None = None


def answer(
    cfg: C2serConfig, mode: Mode, decoding: DecodingConfig | None, params, audio, audio_samples,
    question: Question, keys=None, trie: Trie | None = None,
) -> Found:  # fmt: skip
    """Hears a batch and answers it; a row's result is the same alone and in any batch.

    audio float32[B, N]; audio_samples int32[B]; keys: B keys for decoding mode "sample"; trie: the
    answers that may be written. `cfg`, `mode` and `decoding` (None in mode "labels") are static.
    """
    B = audio.shape[0]
    prompt, prompt_mask = (
        jnp.broadcast_to(x, (B, *x.shape)) for x in (question.prompt, question.prompt_mask)
    )
    heard: Any = C2ser(cfg).apply(
        {"params": params}, audio, audio_samples, prompt, prompt_mask, method="listen"
    )
    embeddings, mask, _ = heard
    model, weights = language_model(cfg), params["llm"]
    tokens = lengths = reasoning = None
    if decoding is not None:
        written = generate(model, weights, embeddings, mask, decoding, key=keys, trie=trie)
        tokens, lengths = written.tokens, written.lengths
        reasoning = reasoned(tokens, lengths, question, decoding.eos)
        if mode == "explicit":
            before: Any = model.apply({"params": weights}, tokens, method="embed")
            embeddings = jnp.concatenate([embeddings, before], 1)
            real = jnp.arange(tokens.shape[1]) < reasoning[:, None]
            mask = jnp.concatenate([mask, real], 1)
    scores = score_labels(
        model, weights, embeddings, mask, question.labels, question.label_mask,
        rivals=question.rivals,
    ).scores  # fmt: skip
    return Found(scores, tokens, lengths, reasoning)


def reasoned(tokens, lengths, question: Question, eos: tuple[int, ...]):
    """int32[B], the tokens of int32[B, M] before the last place where the labels' lead stands.

    Where it stands nowhere, all tokens but an ending one.
    """
    B, M = tokens.shape
    K = question.lead.shape[0]
    padded = jnp.pad(tokens, ((0, 0), (0, K)), constant_values=-1)
    place = jnp.arange(M)
    windows = padded[:, place[:, None] + jnp.arange(K)]  # [B, M, K]
    same = ((windows == question.lead) | ~question.lead_mask).all(2)
    count = question.lead_mask.sum()
    stands = same & (place + count <= lengths[:, None]) & (count > 0)
    last = M - 1 - jnp.argmax(stands[:, ::-1], 1)
    final = jnp.take_along_axis(tokens, jnp.maximum(lengths - 1, 0)[:, None], 1)[:, 0]
    whole = lengths - is_end(final, eos)
    return jnp.where(stands.any(1), last, whole).astype(jnp.int32)
