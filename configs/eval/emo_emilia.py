r"""Emo-Emilia: spontaneous speech, English and Chinese, seven emotions (Zhao et al. 2025).

python -m c2ser_jax.evaluate --config configs/eval/emo_emilia.py --checkpoint DIR --output DIR \
    --data.manifest Emo-Emilia-ALL.jsonl --data.root DIR_WITH_WAV
"""

from c2ser_jax.data.labels import EMO_EMILIA
from c2ser_jax.evaluate_config import EvaluateConfig


def get_config() -> EvaluateConfig:
    """All three ways to ask, and stability on 210 of the 1400 utterances."""
    return EvaluateConfig(name="emo_emilia", labels=tuple(EMO_EMILIA))
