"""SIGTERM at any moment of a run ends it with exit code 0, and the same command goes on."""

import os
import signal

from c2ser_jax import corpus, scoring, stages
from c2ser_jax.training.checkpoint import TrainingCheckpoints
from tests.integration.tiny_corpus import run

STAGES = ("--stages", "pretrain", "probe")
MOMENTS = (
    (corpus, "scan_source", []),
    (stages, "initial_front_end", ["config.json"]),
    (TrainingCheckpoints, "wait", ["config.json", "pretrain"]),  # the last step is done
    (scoring, "extract_features", ["config.json", "pretrain", "probe"]),
    (scoring, "run_probe", ["config.json", "pretrain", "probe"]),
)


def test_a_signal_in_any_part_of_a_run_stops_it_and_the_next_start_goes_on(
    tmp_path, monkeypatch, capsys
):
    for owner, name, left in MOMENTS:
        interrupt(monkeypatch, owner, name)
        assert run(tmp_path, *STAGES) == 0
        monkeypatch.undo()
        assert "stopped by a signal" in capsys.readouterr().out, name
        assert sorted(path.name for path in tmp_path.iterdir()) == left, name
        assert not (tmp_path / "probe/metrics.json").exists()
        assert (tmp_path / "pretrain/model").exists() == ("probe" in left)
    assert run(tmp_path, *STAGES) == 0
    assert (tmp_path / "probe/metrics.json").exists()


def interrupt(monkeypatch, owner, name):
    """Lets SIGTERM come when this function is called first."""
    original, signals = getattr(owner, name), [signal.SIGTERM]

    def signalled(*arguments, **options):
        if signals:
            os.kill(os.getpid(), signals.pop())
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, signalled)
