"""Converting needs memory for one parameter, not for the file; benchmarks measure a 2 GB one."""

import math

from benchmarks.convert_memory import measure, write_checkpoint
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig

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
