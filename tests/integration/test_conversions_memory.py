"""Converting needs memory for one parameter, not for the file; benchmarks measure a 2 GB one."""

import math

from benchmarks.convert_memory import measure, write_checkpoint
from benchmarks.large_checkpoints import ACOUSTIC, write_c2ser
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2 import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig

WORKING_BYTES = 40 << 20  # blocks, tracing, tables: what doesn't grow with the file


def test_memory_follows_the_largest_parameter_not_the_file(tmp_path):
    stem = tuple(
        ConvLayer(64, layer.kernel, layer.stride) for layer in Emotion2VecConfig().conv_layers
    )
    cfg = Emotion2VecConfig(width=512, heads=8, depth=24, prenet_depth=1, conv_layers=stem)
    file = tmp_path / "model.pt"
    shapes = write_checkpoint(file, cfg, moments=False, constant=True)
    largest = max(math.prod(shape) * 4 for shape in shapes.values())
    size = file.stat().st_size
    assert size > 300e6 and largest * 1.5 + WORKING_BYTES < size * 0.7
    _, memory = measure(["emotion2vec", "--from", str(file), "--to", str(tmp_path / "model")])
    assert largest < memory < 1.5 * largest + WORKING_BYTES


def test_a_whole_c2ser_needs_memory_for_one_parameter_too(tmp_path):
    """Checkpoint, its aliases and the folder's equal shards: some 270 MB."""
    cfg = C2serConfig(
        acoustic=ACOUSTIC,
        encoder=WhisperEncoderConfig(width=128, depth=2, heads=2, mlp_width=256),
        connector=ConnectorConfig(encoder_width=128, width=128, mlp_width=256, output_width=512),
        llm=Qwen2Config(
            vocabulary=4000, width=512, depth=16, heads=8, key_value_heads=2, mlp_width=2048,
            lora=LoraConfig(),
        ),
    )  # fmt: skip
    paths = write_c2ser(tmp_path, cfg, 2)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    largest = 2 * 16 * 2048 * 512
    assert size > 250e6 and largest * 1.5 + WORKING_BYTES < size * 0.4
    told = [str(word) for pair in paths.items() for word in pair]
    _, memory = measure(["c2ser", *told, "--to", str(tmp_path / "model")])
    assert largest < memory < 1.5 * largest + WORKING_BYTES
