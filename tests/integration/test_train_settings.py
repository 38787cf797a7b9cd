"""What a stage hands to the loop and to its model directory, with the training itself left out."""

import numpy as np
import pytest

from c2ser_jax import stages, train
from c2ser_jax.training.loop import FitResult
from c2ser_jax.training.state import TrainState
from tests.integration.tiny_corpus import CONFIG


@pytest.fixture
def loops(monkeypatch):
    """The loop settings that `fit` was called with; it leaves the parameters it was given."""
    seen = []

    def fit(task, data, *, cfg, workdir, init_params, **options):
        seen.append(cfg)
        workdir.mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text("")
        state = TrainState(step=0, trainable=init_params, frozen={}, opt=None, ema=None)
        return FitResult(state, [], stopped_by_signal=False)

    monkeypatch.setattr(stages, "fit", fit)
    monkeypatch.setattr(stages, "initial_front_end", lambda *_, **__: {"kernel": np.zeros(3)})
    return seen


def pretrain(workdir, *arguments):
    settings = ["--config", CONFIG, "--workdir", str(workdir), "--stages", "pretrain"]
    assert train.main([*settings, *arguments]) == 0


def test_the_command_and_the_config_both_turn_the_progress_bar_off(loops, tmp_path):
    pretrain(tmp_path / "config", "--pretrain.loop.progress", "False")
    pretrain(tmp_path / "command", "--no-progress")
    pretrain(tmp_path / "neither")
    assert [cfg.progress for cfg in loops] == [False, False, None]
