import json
from pathlib import Path

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.plots import confusion_picture, curves_picture, read_curves


def pixels(path):
    from matplotlib.image import imread

    return np.asarray(imread(path))


CONFUSION = np.array([[9, 1, 0], [2, 2, 4], [0, 0, 0]])


def test_confusion_picture_shows_the_counts_and_not_their_transpose(tmp_path):
    names = ["angry", "Freude $1", "none here"]
    path = confusion_picture(CONFUSION, names, tmp_path / "new" / "a.png", title="fold 1")
    picture = pixels(path)
    assert picture.shape[0] > 300 and picture.shape[1] > 300
    assert picture[..., :3].std() > 0.05
    again = pixels(confusion_picture(CONFUSION, names, tmp_path / "b.png", title="fold 1"))
    np.testing.assert_array_equal(picture, again)
    other = pixels(confusion_picture(CONFUSION.T, names, tmp_path / "c.png", title="fold 1"))
    assert other.shape != picture.shape or (other != picture).any()


def test_a_picture_that_cannot_be_drawn_leaves_the_one_before_it(tmp_path, monkeypatch):
    path = confusion_picture([[1]], ["a"], tmp_path / "a.png")
    before = path.read_bytes()

    def half(self, target, **_):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(UserError, match="a.png: No space left on device"):
        confusion_picture([[2]], ["a"], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_confusion_of_another_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be 2 x 2"):
        confusion_picture(CONFUSION, ["a", "b"], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_names_the_font_cannot_draw_raise_no_warning(tmp_path):
    confusion_picture([[1, 0], [0, 1]], ["愤怒", "neutral"], tmp_path / "a.png", title="情感")


def records(steps=60):
    for step in range(steps):
        yield {
            "step": step,
            "loss": 2.0 / (1 + step),
            "terms": {"frame_loss": 1.0 - step / 100},
            "learning_rate": 1e-3,
            "kind": "train",
            "ok": True,
            "broken": float("nan"),
        }
    yield {"kind": "evaluate", "step": steps, "ua": 0.5, "loss": 3.0}
    yield {"note": "no step"}


def test_curves_are_read_from_nested_records():
    curves = read_curves(records())
    names = {"loss", "terms/frame_loss", "learning_rate", "evaluate/ua", "evaluate/loss"}
    assert set(curves) == names
    assert curves["loss"].shape == (60, 2)
    np.testing.assert_allclose(curves["terms/frame_loss"][10], [10, 0.9])


def test_a_line_cut_off_at_the_end_is_left_out_but_not_one_in_the_middle(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": 1.0}) for i in range(3)]
    path.write_text("\n".join([*lines, '{"step": 3, "lo']), "utf-8")
    assert len(read_curves(path)["loss"]) == 3
    path.write_text("\n".join([lines[0], '{"step": 3, "lo', lines[1]]), "utf-8")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_curves(path)
    with pytest.raises(UserError, match="does not exist"):
        read_curves(tmp_path / "none.jsonl")


def test_curves_picture_draws_every_panel(tmp_path):
    picture = pixels(curves_picture(list(records()), tmp_path / "curves.png", title="run"))
    alone = pixels(
        curves_picture(list(records()), tmp_path / "loss.png", panels={"loss": ["loss", "gone"]})
    )
    assert picture.shape[1] > 2 * alone.shape[1]
    with pytest.raises(UserError, match="no curve to draw"):
        curves_picture(list(records()), tmp_path / "x.png", panels={"loss": ["gone"]})
    empty = pixels(curves_picture([{"step": 1, "seconds": 3.0}], tmp_path / "empty.png"))
    assert empty.shape == alone.shape and (empty != alone).any()


def test_the_terms_of_a_pretraining_row_share_the_panel_of_the_loss(tmp_path):
    rows = [
        {"kind": "train", "step": s, "loss": 8.0 / s, "frame": 4.0, "utterance": 5.0, "seconds": 9}
        for s in (5, 10, 15)
    ]
    whole = pixels(curves_picture(rows, tmp_path / "a.png"))
    named = {"loss": ["loss", "frame", "utterance"]}
    np.testing.assert_array_equal(
        whole, pixels(curves_picture(rows, tmp_path / "b.png", panels=named))
    )
