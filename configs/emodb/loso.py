"""EmoDB from nothing, leave one speaker out: pretraining with the three losses, then fine-tuning.

python -m c2ser_jax.train --config configs/emodb/loso.py --data.root EMODB
"""

from c2ser_jax.config import ClassifyStage, CorpusConfig, PretrainStage, RunConfig
from c2ser_jax.data.augmentation import AugmentConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.frontend_init import FrontEndConfig
from c2ser_jax.tasks.classify import ClassifyConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

# One frame per 40 ms: short training audio wants few, wide frames.
ENCODER = Emotion2VecConfig(
    width=64, depth=2, prenet_depth=0, heads=4, mlp_ratio=2.0, extra_tokens=2,
    conv_layers=(ConvLayer(164, 400, 160), ConvLayer(160, 3, 2), ConvLayer(128, 3, 2)),
    conv_bias=True, position_width=20, position_depth=4, position_groups=1,
    dropout=0.1, attention_dropout=0.0, mlp_dropout=0.1, prenet_dropout=0.1, layer_drop=0.0,
)  # fmt: skip
BATCHES = DataConfig(
    bucket_seconds=(2.3, 3.0, 4.0, 5.3),  # named, so that every fold compiles the same shapes
    max_seconds=5.3,
    batch_seconds=170.0,
    max_rows=32,
    sampling="stratified",
    augment=AugmentConfig(
        speed_probability=0.8, speed=(0.85, 1.15), noise_probability=0.5, noise_snr_db=(15.0, 35.0)
    ),
)
OPTIMIZER = OptimizerConfig(learning_rate=2e-3, weight_decay=0.05, warmup_steps=60, clip_norm=1.0)
FROZEN_STEM = r"(?!encoder/local_encoder/).*"


def get_config() -> RunConfig:
    """Ten folds; nothing is chosen by looking at a test speaker, so none is held back for it."""
    return RunConfig(
        name="emodb-loso",
        encoder=ENCODER,
        front_end=FrontEndConfig(),
        data=CorpusConfig(corpus="emodb", protocol="loso", development=False, cache=True),
        pretrain=PretrainStage(
            task=PretrainConfig(
                frame_weight=0.02, utterance_weight=0.002, category_weight=1.0, temperature=0.1,
                data2vec=Data2VecConfig(
                    clone_batch=1, mask_prob=0.3, average_top_k_layers=2, decoder_width=64,
                    decoder_depth=1, decoder_kernel=5, decoder_groups=1,
                ),
            ),
            batches=BATCHES,
            optimizer=OPTIMIZER,
            loop=LoopConfig(
                steps=600, log_every=100, save_every=600, ema_decay=0.99, trainable=FROZEN_STEM
            ),
        ),
        classify=ClassifyStage(
            task=ClassifyConfig(label_smoothing=0.1, mask_prob=0.15, category_weight=0.5),
            batches=BATCHES,
            optimizer=OPTIMIZER,
            loop=LoopConfig(
                steps=700, log_every=100, save_every=700, ema_decay=0.98, trainable=FROZEN_STEM
            ),
        ),
    )  # fmt: skip
