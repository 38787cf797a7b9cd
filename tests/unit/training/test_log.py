"""What a run writes: each step once in metrics.jsonl, nothing from processes that do not write."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.training.log import MetricsWriter, read_metrics
from c2ser_jax.training.preemption import Stopped, StopSignal
from c2ser_jax.training.resume import check_same_run
from c2ser_jax.training.window import Window


def test_rows_after_the_start_step_and_a_cut_line_are_dropped(tmp_path):
    first = MetricsWriter(tmp_path, start_step=0, total_steps=9)
    for step in (2, 4, 6):
        first.write("train", step, {"loss": 1.0 / step})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    second = MetricsWriter(tmp_path, start_step=4, total_steps=9)
    second.write("train", 6, {"loss": math.nan, "note": "ü"})
    second.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 0.5), (4, 0.25), (6, None)]
    assert rows == second.history == read_metrics(tmp_path / "metrics.jsonl")


def test_other_processes_write_nothing(tmp_path, capfd):
    writer = MetricsWriter(tmp_path / "new", start_step=0, total_steps=9, active=False)
    writer.write("train", 1, {"loss": 1.0})
    writer.say("hello")
    writer.advance()
    writer.close()
    assert not (tmp_path / "new").exists() and writer.history[0]["loss"] == 1.0
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_there_is_no_bar_but_lines(tmp_path, capfd):
    writer = MetricsWriter(tmp_path, start_step=0, total_steps=9, progress=True)
    writer.advance()
    writer.write("train", 1, {"loss": 0.123456})
    writer.close()
    assert capfd.readouterr().err == "train step 1  loss 0.1235\n"


def test_tensorboard_without_its_extra_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="tracking"):
        MetricsWriter(tmp_path, start_step=0, total_steps=9, tensorboard=True)


def test_a_window_divides_sums_by_counts_and_leaves_compiling_out(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    window = Window()
    for total, count in ((1.0, 1.0), (2.0, 5.0)):
        window.add(
            {
                "loss": jnp.float32(total),
                "gradient_norm": jnp.float32(3.0),
                "learning_rate": jnp.float32(count),
                "audio_seconds": jnp.float32(8.0),
                "terms": {"a": (jnp.float32(total), jnp.float32(count))},
                "metrics": {"never": (jnp.float32(0), jnp.float32(0))},
            }
        )
    clock[0] = 114.0
    window.pause(3.0)
    row = window.row(compile_seconds=7.0)
    assert row["a"] == 0.5 and row["loss"] == 1.5 and row["learning_rate"] == 5.0
    assert row["audio_seconds_per_second"] == 4.0 and row["steps_per_second"] == 0.5
    assert row["seconds"] == 4.0 and row["compile_seconds"] == 7.0 and "never" not in row
    clock[0] = 115.0
    assert window.row(compile_seconds=7.0) == {"seconds": 1.0, "compile_seconds": 0.0}


def test_free_fields_are_matched_whole(tmp_path):
    check_same_run({"loop": {"log_every": 1}}, {"loop": {"log_every": 2}}, tmp_path, 3)
    with pytest.raises(UserError, match="catalog_every: 1 → 2"):
        check_same_run({"loop": {"catalog_every": 1}}, {"loop": {"catalog_every": 2}}, tmp_path, 3)
    with pytest.raises(UserError, match="seed: null → 1"):
        check_same_run({}, {"seed": 1}, tmp_path, 3)


def test_the_first_sigterm_is_noted_and_the_second_kills():
    code = (
        "import os, signal\n"
        "from c2ser_jax.training.preemption import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(stop.requested, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('alive', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stdout == b"True\n" and done.returncode == -signal.SIGTERM


def test_work_that_is_done_over_is_left_at_once():
    with StopSignal() as stop:
        with pytest.raises(Stopped), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        assert stop.requested
        with pytest.raises(Stopped), stop.at_once():
            raise AssertionError("nothing begins after the signal")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before and not stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_terminal_gets_a_bar_and_lines_beside_it(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for progress, bar in ((None, True), (False, False)):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        writer = MetricsWriter(tmp_path, start_step=2, total_steps=9, progress=progress)
        writer.advance(3)
        writer.say("compiling shape 8×16 … 1.0 s")
        writer.write("train", 5, {"loss": 0.5})
        writer.close()
        assert ("5/9" in screen.getvalue()) is bar
        assert "compiling shape" in screen.getvalue()
        assert ("train step 5" in screen.getvalue()) is not bar
