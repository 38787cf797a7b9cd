r"""C2SER at 7 B, stage 2: from explicit answers to implicit ones, as the explicit share falls.

python -m c2ser_jax.train --config configs/published/c2ser_implicit.py --data.manifest LIST \
    --initial EXPLICIT

where EXPLICIT is the model directory that c2ser_explicit.py left, or a converted C2SER. All else is
that file's. Source of the schedule: C2SER (arXiv 2502.18186), implicit chain of thought by
self-distillation.
"""

import dataclasses
from pathlib import Path

from c2ser_jax.config import RunConfig, load_run


def get_config() -> RunConfig:
    """The probability of an explicit answer falls linearly from 1 to 0 over the stage."""
    before = load_run(Path(__file__).with_name("c2ser_explicit.py"))
    assert before.explicit is not None
    answers = dataclasses.replace(before.explicit.answers, explicit_share_end=0.0)
    return dataclasses.replace(
        before,
        name="c2ser-implicit",
        initial=f"runs/{before.name}/explicit/model",
        explicit=None,
        implicit=dataclasses.replace(before.explicit, answers=answers),
    )
