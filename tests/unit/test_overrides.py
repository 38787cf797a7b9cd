"""Overrides are typed, and a mistake is one sentence that names the nearest setting."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.overrides import apply_overrides, field_paths, to_json


@dataclass(frozen=True)
class Layer:
    channels: int
    stride: int


@dataclass(frozen=True)
class Part:
    learning_rate: float = 1e-3
    kind: Literal["adam", "sgd"] = "adam"
    layers: tuple[Layer, ...] = (Layer(3, 2), Layer(5, 1))

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be positive")


@dataclass(frozen=True)
class Whole:
    seed: int = 0
    shuffle: bool = True
    names: tuple[str, ...] = ()
    part: Part = field(default_factory=Part)
    absent: Part | None = None


def test_values_are_applied_by_type_at_any_depth():
    config = apply_overrides(
        Whole(),
        ["--part.learning-rate", "0.5", "--seed=7", "--shuffle", "False", "--names", "a", "b"]
        + ["--part.layers.1.channels", "9"],
    )
    assert config.part.learning_rate == 0.5 and config.seed == 7 and config.shuffle is False
    assert config.names == ("a", "b") and config.part.layers[1] == Layer(9, 1)


def test_no_override_returns_an_equal_config():
    assert apply_overrides(Whole(seed=3), []) == Whole(seed=3)


def test_an_unknown_path_names_the_nearest():
    with pytest.raises(UserError, match="'part.lerning_rate'.*--part.learning_rate"):
        apply_overrides(Whole(), ["--part.lerning_rate", "1"])


def test_the_right_name_in_the_wrong_place_is_found():
    with pytest.raises(UserError, match="--part.learning_rate"):
        apply_overrides(Whole(), ["--optimizer.learning_rate", "1"])


@pytest.mark.parametrize(
    "arguments", [["--seed", "three"], ["--part.kind", "adagrad"], ["--shuffle", "perhaps"]]
)
def test_a_wrong_type_names_the_setting_and_its_value(arguments):
    with pytest.raises(UserError, match=arguments[0]) as caught:
        apply_overrides(Whole(), ["--names", "x", *arguments])
    assert "\n" not in str(caught.value) and "the value now is" in str(caught.value)


def test_an_impossible_combination_keeps_its_own_sentence():
    with pytest.raises(UserError, match="must be positive"):
        apply_overrides(Whole(), ["--part.learning_rate", "-1"])


def test_a_value_without_an_option_is_refused():
    with pytest.raises(UserError, match="not an option"):
        apply_overrides(Whole(), ["seed", "3"])


def test_paths_and_json_cover_every_field():
    assert field_paths(Whole())["part.layers.0.stride"] == 2
    assert to_json(Whole())["part"]["layers"][1] == {"channels": 5, "stride": 1}
