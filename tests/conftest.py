"""What every test runs under: quick compilation, and a compilation cache of the session's own."""

import gc
import importlib.metadata
import os
import tempfile

from xdist.scheduler import LoadFileScheduling

from c2ser_jax.errors import GARBAGE_THRESHOLDS

# Code generation takes most of the tests' time and their arrays are tiny: LLVM optimises nothing,
# a program is one module of its, and fused operations are emitted the plain way (a third of the
# time). XLA's own program stays the same; the quickstart, which CI runs too, and the benchmarks
# compile as users do.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that is not known aborts
    _QUICK += " --xla_cpu_use_fusion_emitters=false"

gc.set_threshold(*GARBAGE_THRESHOLDS)

_cache = None
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit all this
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()
    os.environ["MPLBACKEND"] = "Agg"
    _cache = tempfile.TemporaryDirectory(prefix="c2ser_jax-tests-", ignore_cleanup_errors=True)
    os.environ["C2SER_COMPILATION_CACHE"] = _cache.name


# Files whose tests use the same programs run in one process, every other file in any.
# librosa is compiled for 40 s in a new environment, by one process while others wait.
_TOGETHER = {
    "tests/unit/answering/": "answers",
    "tests/unit/test_answer_scores": "answers",
    "tests/integration/test_evaluate_answers": "answers",
    "tests/integration/test_predict_speech": "answers",
    "tests/integration/test_train_": "train",
    "tests/integration/test_bad_input_commands": "encoders",
    "tests/integration/test_evaluate.": "encoders",
    "tests/integration/test_extract": "encoders",
    "tests/integration/test_predict.": "encoders",
    "tests/unit/test_inference": "encoders",
    "tests/parity/test_whisper": "librosa",
    "tests/unit/data/test_cot_rows": "librosa",
    "tests/unit/data/test_cot_text": "librosa",
    "tests/unit/data/test_speaking_style": "librosa",
}


class _Groups(LoadFileScheduling):
    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return next((name for start, name in _TOGETHER.items() if file.startswith(start)), file)


def pytest_xdist_make_scheduler(config, log):
    return _Groups(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_unconfigure():
    gc.collect()
    gc.freeze()  # pytest collects five times more, to find exceptions that nobody saw
    if _cache is not None:
        _cache.cleanup()
