"""EmoBox's probe on frozen features of any model, EmoDB, leave one speaker out.

python -m c2ser_jax.train --config configs/emodb/probe.py --initial DIR --data.root EMODB
"""

from c2ser_jax.config import CorpusConfig, RunConfig
from c2ser_jax.tasks.probe_recipe import ProbeConfig


def get_config() -> RunConfig:
    """Ten folds over one extraction; in each another training speaker chooses epoch and width."""
    return RunConfig(
        name="emodb-probe",
        data=CorpusConfig(corpus="emodb", protocol="loso"),
        probe=ProbeConfig(),
    )
