"""What a stage hands to the loop and to its model directory, with the training itself left out."""

import numpy as np
import pytest

from c2ser_jax import stage_run, stages, train
from c2ser_jax.errors import UserError
from c2ser_jax.training.checkpoint import ModelDescription, leaves_of, read_description, write_model
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

    monkeypatch.setattr(stage_run, "fit", fit)
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


def test_a_run_that_was_refused_before_it_began_leaves_its_folder_free(loops, tmp_path):
    other = ModelDescription("emotion2vec", {"depth": 9})
    write_model(tmp_path / "given", other, leaves_of({"encoder": {"kernel": np.ones(3)}}))
    with pytest.raises(UserError, match="depth 9, this run has 1: .*--encoder.depth 9"):
        pretrain(tmp_path / "run", "--initial", str(tmp_path / "given"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    pretrain(tmp_path / "run", "--seed", "5")  # corrected, in the same folder
    with pytest.raises(UserError, match="holds another run .*seed: 5 → 6"):
        pretrain(tmp_path / "run", "--seed", "6")


def test_a_model_keeps_licence_and_origin_of_the_one_it_started_from(loops, tmp_path):
    given = ModelDescription(
        "emotion2vec", {}, origin={"source": "model.pt"}, licence="CC-BY-NC-4.0"
    )
    params = {"encoder": {"kernel": np.ones(3, np.float32)}}
    write_model(tmp_path / "given", given, leaves_of(params))
    pretrain(tmp_path / "run", "--initial", str(tmp_path / "given"))
    pretrain(tmp_path / "own")
    trained = read_description(tmp_path / "run/pretrain/model")
    assert trained.licence == "CC-BY-NC-4.0"
    assert trained.origin["initial_origin"] == {"source": "model.pt"}
    own = read_description(tmp_path / "own/pretrain/model")
    assert own.licence is None and "initial_origin" not in own.origin
