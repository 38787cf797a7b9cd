"""EmoDB from nothing on EmoBox's folds: the recipe of loso.py, other training and test lists.

python -m c2ser_jax.train --config configs/emodb/folds.py --data.root EMODB --data.lists LISTS
"""

from dataclasses import replace
from pathlib import Path

from c2ser_jax.config import RunConfig, load_run


def get_config() -> RunConfig:
    """The five folds; their test speakers are heard in training too, so scores are higher."""
    run = load_run(Path(__file__).with_name("loso.py"))
    data = replace(run.data, protocol="lists", lists="EmoBox/data/emodb")
    return replace(run, name="emodb-folds", data=data)
