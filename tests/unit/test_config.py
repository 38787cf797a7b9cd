"""Config files load with or without .py; mistakes are one sentence before anything is allocated."""

import ast
from pathlib import Path

import pytest

from c2ser_jax import train
from c2ser_jax.config import CorpusConfig, RunConfig, import_config, load_run
from c2ser_jax.errors import UserError
from c2ser_jax.evaluate_config import EvaluateConfig
from c2ser_jax.training.resume import differences

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


EVALUATIONS = sorted((CONFIGS / "eval").glob("*.py"))
RUNS = sorted({*CONFIGS.rglob("*.py")} - {*EVALUATIONS})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_file_gives_a_run(path):
    run = load_run(path)
    assert run.configured_stages() and run == load_run(path.with_suffix(""))


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_every_config_file_of_an_evaluation_gives_one(path):
    assert isinstance(import_config(path), EvaluateConfig)
    with pytest.raises(UserError, match="EvaluateConfig, not a RunConfig"):
        load_run(path)


@pytest.mark.parametrize("path", [*RUNS, *EVALUATIONS], ids=lambda path: path.stem)
def test_commands_over_several_lines_can_be_copied(path):
    lines = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")
    for before, line in zip(lines, lines[1:], strict=False):
        assert not line.startswith("    --") or before.endswith(" \\"), line


def test_overrides_reach_every_part():
    run = load_run(
        CONFIGS / "quickstart",
        ["--pretrain.task.data2vec.clone_batch", "3", "--mesh.fsdp", "2", "--stages", "probe"],
    )
    assert run.pretrain is not None and run.pretrain.task.data2vec.clone_batch == 3
    assert run.mesh.fsdp == 2 and run.configured_stages() == ("probe",)


@pytest.mark.parametrize(
    "config, overrides, sentence",
    [
        ("quickstart", ["--pretrain.loop.stepz", "3"], "--pretrain.loop.steps"),
        ("quickstart", ["--pretrain.loop.steps", "many"], "--pretrain.loop.steps many"),
        ("quickstart", ["--encoder.heads", "5"], "not a multiple of heads 5"),
        ("quickstart", ["--data.corpus", "manifest"], "data.manifest names no file"),
        ("quickstart", ["--pretrain.loop.steps", "5"], "warm-up must end within"),
        ("quickstart", ["--pretrain.loop.ema_decay", "0"], "needs a teacher"),
        ("quickstart", ["--stages", "classify"], "does not configure"),
        ("quickstart", ["--data.test_share", "1.5"], "between 0 and 1"),
        ("quickstart_c2ser", ["--implicit.loop.steps", "5"], "but implicit.loop.steps is 5"),
        (
            "quickstart_c2ser",
            ["--explicit.loop.trainable", "llm/"],
            "explicit.task.trainable names what is trained",
        ),
        (
            "quickstart_c2ser",
            ["--explicit.batches.augment.gain_db", "6"],
            "explicit.batches.augment changes",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_change(config, overrides, sentence):
    with pytest.raises(UserError) as caught:
        load_run(CONFIGS / f"{config}.py", overrides)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "other.py").write_text("def get_config():\n    return 3\n")
    for name, sentence in [("empty", "get_config"), ("other", "int"), ("absent", "no config")]:
        with pytest.raises(UserError, match=sentence):
            load_run(tmp_path / name)


def test_the_command_needs_a_config():
    with pytest.raises(UserError, match="--config is missing"):
        train.main([])


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--config", str(CONFIGS / "quickstart"), "--help"])
    assert caught.value.code == 0
    assert "--pretrain.optimizer.learning_rate" in capsys.readouterr().out


def test_what_decides_the_result_is_compared_and_nothing_else():
    before = {"a": {"b": 1, "c": 2, "workers": 0}, "mesh": {"data": 1}}
    assert differences(before, {"a": {"b": 1, "c": 3, "workers": 0}}) == "a.c: 2 → 3"
    assert not differences(before, {"a": {"b": 1, "c": 2, "workers": 4}, "mesh": {"data": 8}})


def test_a_corpus_needs_its_lists():
    with pytest.raises(UserError, match="data.lists"):
        CorpusConfig(corpus="emodb", root="x", protocol="lists")
    assert RunConfig().configured_stages() == ()


def test_a_typo_in_the_middle_of_a_path_names_the_setting_that_was_meant():
    with pytest.raises(UserError, match="'pretrain.lop.steps'; the nearest is --pretrain.loop.ste"):
        load_run("configs/quickstart", ["--pretrain.lop.steps", "5"])
