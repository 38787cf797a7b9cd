"""How an answer is decoded, and what it comes back as."""

import dataclasses
from typing import Literal, get_args

import flax.struct
import jax

from c2ser_jax.errors import UserError

Mode = Literal["greedy", "beam", "published", "sample"]
BEAM_MODES = ("beam", "published")


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """The rule of decoding; the defaults are what the released C2SER does, with Qwen2's ids.

    "published" is a beam search in which every beam is extended by its two best tokens only (one
    more than there are `eos` tokens). The repetition penalty looks at generated tokens: it divides
    positive logits and multiplies negative ones, in beam modes it multiplies log-probabilities. A
    beam's score is its sum of log-probabilities / length ** length_penalty, `eos` counted.
    `temperature`, `top_k` (0: off) and `top_p` (1: off) act in "sample" alone. No answer ends
    before `min_new_tokens`.
    """

    mode: Mode = "published"
    max_new_tokens: int = 400
    min_new_tokens: int = 0
    beams: int = 4
    repetition_penalty: float = 1.05
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos: tuple[int, ...] = (151643,)
    pad: int = 151643

    def __post_init__(self):
        """Raises UserError for a rule that means nothing."""
        for wrong, sentence in self._complaints():
            if wrong:
                raise UserError(sentence)

    def _complaints(self):
        modes = get_args(Mode)
        yield (
            self.mode not in modes,
            f"decoding mode is {self.mode!r}: use one of {', '.join(modes)}",
        )
        for name in ("max_new_tokens", "beams"):
            value = getattr(self, name)
            yield value < 1, f"{name} is {value}: it must be at least 1"
        yield (
            not 0 <= self.min_new_tokens <= self.max_new_tokens,
            f"min_new_tokens is {self.min_new_tokens}: it must lie between 0 and max_new_tokens "
            f"{self.max_new_tokens}",
        )
        for name in ("repetition_penalty", "temperature"):
            value = getattr(self, name)
            yield not value > 0.0, f"{name} is {value}: it must be positive"
        yield self.top_k < 0, f"top_k is {self.top_k}: it must not be negative (0 switches it off)"
        yield not 0.0 < self.top_p <= 1.0, f"top_p is {self.top_p}: it must lie in (0, 1]"
        yield not self.eos, "eos is empty: name at least one token that ends an answer"


class Generated(flax.struct.PyTreeNode):
    """Answers to B prompts, at most N tokens each.

    tokens int32[B, N], `pad` behind the end; lengths int32[B], the ending token counted; scores
    float32[B]: a beam's final score, else the mean log-probability of the chosen tokens. In beam
    modes best_tokens int32[B, beams, N], best_lengths and best_scores [B, beams] hold all of the
    final list, best first; a score of -inf marks a place that nothing fills. Otherwise None.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    best_tokens: jax.Array | None = None
    best_lengths: jax.Array | None = None
    best_scores: jax.Array | None = None
