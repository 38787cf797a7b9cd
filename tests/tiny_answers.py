"""A small whole model that learns to answer, with texts and a tokenizer of bytes."""

import dataclasses

import numpy as np

from c2ser_jax.data.cot_data import AnswerConfig, CotData
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.sources import MemorySource
from c2ser_jax.models.augment import SpecAugmentConfig, SpecSubConfig
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.emotion2vec_config import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2_config import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.tasks.cot import CotConfig

LABELS = ("angry", "sad")
LANGUAGES = ("en", "zh")

# Widths that eight devices can share; few places that drop, whose draws take long to compile.
MODEL = C2serConfig(
    acoustic=Emotion2VecConfig(
        width=8, depth=1, prenet_depth=0, heads=4, mlp_ratio=2.0,
        conv_layers=(ConvLayer(8, 20, 20), ConvLayer(8, 16, 16)), position_width=3,
        position_depth=1, position_groups=2, extra_tokens=3,
    ),
    encoder=WhisperEncoderConfig(
        mel_bins=12, width=16, depth=2, heads=4, mlp_width=24, positions=40,
        dropout=0.1,
    ),
    connector=ConnectorConfig(
        encoder_width=16, width=24, depth=1, heads=4, mlp_width=40, output_width=32, positions=60,
        position_dropout=0.1, dropout=0.0, activation_dropout=0.0,
    ),
    llm=Qwen2Config(
        vocabulary=264, width=32, depth=2, heads=8, key_value_heads=4, mlp_width=48,
        max_positions=300,
        lora=LoraConfig(rank=2, alpha=8.0, dropout=0.1, targets=("q_proj", "down_proj")),
    ),
    acoustic_token_count=3,
)  # fmt: skip
TASK = CotConfig(
    trainable="link_and_encoder_and_lora",
    distillation_weight=0.5,
    spec_augment=SpecAugmentConfig(max_time_frames=5, max_frequency_bins=3),
    spec_sub=SpecSubConfig(max_frames=4),
)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Answers of one row."""

    language: str
    explicit: str
    implicit: str


class Bytes:
    """One token per byte, and one that ends an answer."""

    eos = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode())


def make_texts(items) -> dict[str, Texts]:
    """Both answers of (utterance, audio) pairs, the short one at the end of the long one."""
    made = {}
    for row, (utterance, _) in enumerate(items):
        short = f"<{utterance.label}>"
        made[utterance.id] = Texts(LANGUAGES[row % 2], f"{'so ' * (row % 3)}{short}", short)
    return made


def make_items(count: int = 24, longest: int = 8000) -> list[tuple[Utterance, np.ndarray]]:
    """Noise of 0.2 to 0.5 s with labels in turn."""
    rng = np.random.default_rng(0)
    items = []
    for row in range(count):
        audio = 0.1 * rng.normal(size=int(rng.integers(3200, longest)))
        utterance = Utterance(id=f"u{row}", path="", label=LABELS[row // 2 % 2])
        items.append((utterance, audio.astype(np.float32)))
    return items


def make_data(
    *, answers: AnswerConfig | None = None, rows: int = 8, steps: int = 8, workers: int = 0,
    share: tuple[int, int] = (0, 1), distils: bool = True, cfg: DataConfig | None = None,
    items=None,
) -> CotData:  # fmt: skip
    """Batches of one shape, half of their answers explicit at half of the steps."""
    items = make_items() if items is None else items
    cfg = cfg or DataConfig(
        max_seconds=0.5, bucket_seconds=(0.5,), max_rows=rows, row_multiple=rows, threads=1,
        workers=workers,
    )  # fmt: skip
    return CotData(
        MemorySource(items), LABELS, cfg, answers or AnswerConfig(explicit_share_end=0.0),
        make_texts(items), Bytes(), steps=steps, seed=1, distils=distils, process_index=share[0],
        process_count=share[1],
    )  # fmt: skip
