"""SIGTERM at any moment of a run ends it with exit code 0, and the same command goes on."""

import os
import re
import signal
from pathlib import Path

import pytest

from c2ser_jax import corpus, scoring, stages
from c2ser_jax.errors import UserError
from c2ser_jax.training.checkpoint import TrainingCheckpoints
from tests.integration.tiny_corpus import run, write_corpus

STAGES = ("--stages", "pretrain", "probe")
MOMENTS = (
    (corpus, "scan_source", []),
    (stages, "initial_front_end", ["config.json"]),
    (TrainingCheckpoints, "wait", ["config.json", "pretrain"]),  # the last step is done
    (scoring, "extract_features", ["config.json", "pretrain", "probe"]),
    (scoring, "run_probe", ["config.json", "pretrain", "probe"]),
)


@pytest.fixture
def corpus_settings(tmp_path_factory):
    """Settings of a run on a manifest of four speakers."""
    manifest = write_corpus(tmp_path_factory.mktemp("corpus"), ["angry", "happy", "sad"])
    return (*STAGES, "--data.corpus", "manifest", "--data.manifest", manifest)


def test_a_signal_in_any_part_of_a_run_stops_it_and_the_next_start_goes_on(
    corpus_settings, tmp_path, monkeypatch, capsys
):
    for owner, name, left in MOMENTS:
        interrupt(monkeypatch, owner, name)
        assert run(tmp_path, *corpus_settings) == 0
        monkeypatch.undo()
        assert "stopped by a signal" in capsys.readouterr().out, name
        assert sorted(path.name for path in tmp_path.iterdir()) == left, name
        assert not (tmp_path / "probe/metrics.json").exists()
        assert (tmp_path / "pretrain/model").exists() == ("probe" in left)
    assert run(tmp_path, *corpus_settings) == 0
    assert (tmp_path / "probe/metrics.json").exists()


def test_a_scheduler_can_ask_for_another_exit_code_of_a_stopped_run(tmp_path, monkeypatch):
    """Else an evicted pod would count as succeeded, and nothing would start it again."""
    manifest = (Path(__file__).parents[2] / "launch" / "kubernetes.yaml").read_text("utf-8")
    name = "C2SER_EXIT_WHEN_STOPPED"
    [told] = re.findall(rf'name: {name} .*\n *value: "(\d+)"', manifest)
    monkeypatch.setenv(name, told)
    interrupt(monkeypatch, corpus, "scan_source")
    assert run(tmp_path, *STAGES) == 143
    monkeypatch.setattr("c2ser_jax.run._execute", lambda *of: {})
    assert run(tmp_path, *STAGES) == 0  # it is complete
    monkeypatch.setenv(name, "-1")
    with pytest.raises(UserError, match="EXIT_WHEN_STOPPED is '-1'"):
        run(tmp_path, *STAGES)


def interrupt(monkeypatch, owner, name):
    """Lets SIGTERM come when this function is called first."""
    original, signals = getattr(owner, name), [signal.SIGTERM]

    def signalled(*arguments, **options):
        if signals:
            os.kill(os.getpid(), signals.pop())
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, signalled)
