"""`load` and the model it returns: predictions, features, and the sentences for what is wrong."""

import io
import json

import jax
import numpy as np
import pytest
import soundfile

import c2ser_jax
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.errors import UserError
from c2ser_jax.inference import Model, fingerprint, load
from c2ser_jax.models.emotion2vec import Emotion2VecClassifier
from tests.tiny_models import TINY, tiny_params, voice, write_tiny, write_wav

LABELS = ["生气/angry", "unuse_0", "happy", "sad"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "classifier", labels=LABELS)


@pytest.fixture(scope="module")
def model(directory) -> Model:
    return c2ser_jax.load(directory)


@jax.jit
def _apply(params, audio, statistics):
    samples = np.array([audio.shape[1]], np.int32)
    module = Emotion2VecClassifier(TINY, len(LABELS))
    return module.apply({"params": params}, audio, samples, audio_statistics=statistics)


def direct(audio, whole=None):
    """(logits, output) of one clip by the module alone, normalised as (part of) `whole`."""
    whole = audio if whole is None else whole
    statistics = np.array([[whole.mean(), whole.var()]], np.float32)
    return _apply(tiny_params(TINY, len(LABELS)), audio[None], statistics)


def test_a_prediction_is_the_softmax_of_the_used_logits(model):
    audio = voice(0.9)
    prediction = model(audio, rate=16000)
    logits = np.asarray(direct(audio)[0][0])[[0, 2, 3]]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert list(prediction.probabilities) == ["生气/angry", "happy", "sad"] == model.used_labels
    np.testing.assert_allclose(list(prediction.probabilities.values()), expected, atol=1e-5)
    assert prediction.label == model.used_labels[int(expected.argmax())]
    assert prediction.seconds == 0.9 and prediction.timeline == ()


def test_features_equal_the_module(model):
    audio = voice(0.9, seed=1)
    output = direct(audio)[1]
    for granularity, expected in (
        ("frame", output.frames[0]),
        ("tokens", output.tokens[0]),
        ("utterance", output.frames[0].mean(0)),
    ):
        found = model.features(audio, granularity, rate=16000)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
    sliced = model.features(audio, "tokens", rate=16000, utterance_tokens="published")
    np.testing.assert_allclose(sliced, output.frames[0, :5], atol=1e-5)


def test_layers_count_from_one_and_the_last_is_the_default(model):
    audio = voice(0.5)
    last = model.features(audio, rate=16000)
    np.testing.assert_allclose(model.features(audio, rate=16000, layer=2), last, atol=1e-6)
    assert np.abs(model.features(audio, rate=16000, layer=1) - last).max() > 0.1
    with pytest.raises(UserError, match="no block 3"):
        model.features(audio, rate=16000, layer=3)


def test_every_kind_of_input_is_understood(model, tmp_path):
    audio = voice(0.6)
    file = write_wav(tmp_path / "a.wav", audio)
    memory = io.BytesIO()
    soundfile.write(memory, audio, 16000, format="WAV", subtype="FLOAT")
    inputs = [
        str(file), file, memory, {"array": audio, "sampling_rate": 16000},
        Utterance("mine", str(file)),
    ]  # fmt: skip
    found = model(inputs)
    assert [p.id for p in found] == [str(file), str(file), "file 2", "array 3", "mine"]
    scores = np.array([list(p.probabilities.values()) for p in found])
    assert np.ptp(scores, axis=0).max() < 1e-6
    stereo = np.stack([audio, audio], axis=1)
    np.testing.assert_allclose(
        list(model(stereo, rate=16000).probabilities.values()), scores[0], atol=1e-6
    )
    higher = model(voice(0.6, rate=48000), rate=48000)
    assert abs(higher.seconds - 0.6) < 1e-3
    assert model([]) == []


def test_what_cannot_be_heard_is_one_sentence(model, tmp_path):
    for audio, rate, match in (
        (voice(0.5), None, "rate"),
        ([0.1, 0.2, 0.3], 16000, "array"),
        (object(), None, "path"),
        (tmp_path / "no.wav", None, "no such file"),
        (np.zeros(100, np.float32), 16000, "too short"),
    ):
        with pytest.raises(UserError, match=match):
            model(audio, rate)
    with pytest.raises(UserError, match="granularity 'word'"):
        model.features(voice(0.5), "word", rate=16000)


def test_the_timeline_covers_the_clip_and_averages_to_the_whole(model):
    audio = np.concatenate([voice(0.5), voice(0.45, seed=7)])
    prediction = model(audio, rate=16000, timeline_seconds=0.2)
    sections = prediction.timeline
    assert [round(s.start, 2) for s in sections] == [0, 0.2, 0.4, 0.6, 0.8]
    assert all(a.end == b.start for a, b in zip(sections, sections[1:], strict=False))
    assert sections[-1].end == prediction.seconds == 0.95
    assert all(abs(sum(s.probabilities.values()) - 1) < 1e-6 for s in sections)
    frames, T = [10, 10, 10, 10, TINY.frames(len(audio)) - 40], TINY.frames(len(audio))
    logs = np.array([np.log(list(s.probabilities.values())) for s in sections])
    centred = logs - logs[:, :1]
    mean = (centred * np.array(frames)[:, None]).sum(0) / T
    whole = np.log(list(prediction.probabilities.values()))
    np.testing.assert_allclose(mean, whole - whole[0], atol=1e-5)


def test_long_audio_is_windowed_with_the_statistics_of_the_whole(directory):
    model = load(directory, window_seconds=5)
    audio = np.concatenate([0.4 + voice(6.0), 0.05 * voice(6.0, seed=3) - 0.4])
    frames = model.features(audio, rate=16000)
    assert frames.shape == (TINY.frames(len(audio)), TINY.width)
    seams = []
    for start in (0, 60_160, 112_000):  # 5 s windows, 1.24 s shared, the last at the end
        window = np.asarray(direct(audio[start : start + 80_000], whole=audio)[1].frames[0])
        place = start // 320
        same = np.abs(window - frames[place : place + len(window)]).max(axis=1) < 1e-4
        seams.append((place + int(same.argmax()), place + len(same) - int(same[::-1].argmax())))
    assert seams[0][0] == 0 and seams[-1][1] == len(frames)
    assert [last for _, last in seams[:-1]] == [first for first, _ in seams[1:]]
    first = model.features(audio, "tokens", rate=16000, utterance_tokens="published")
    np.testing.assert_allclose(first, frames[:5], atol=1e-6)


def test_a_run_compiles_each_shape_once_and_says_so(directory):
    lines: list[str] = []
    model = load(directory, log=lines.append)
    clips = [voice(s, seed=i) for i, s in enumerate((0.3, 0.5, 0.9, 0.7))]
    first = model(clips, rate=16000)
    assert lines and all(line.startswith("compiling shape") for line in lines)
    count = len(lines)
    again = model(clips, rate=16000)
    assert len(lines) == count
    assert [p.probabilities for p in first] == [p.probabilities for p in again]


def test_bfloat16_answers_the_same_label(directory, model):
    half = load(directory, dtype="bfloat16")
    clips = [voice(0.8, seed=i) for i in range(6)]
    for a, b in zip(model(clips, rate=16000), half(clips, rate=16000), strict=True):
        best = sorted(a.probabilities.values())
        assert a.label == b.label or best[-1] - best[-2] < 0.02
        gap = np.subtract(list(a.probabilities.values()), list(b.probabilities.values()))
        assert np.abs(gap).max() < 0.03


def test_an_encoder_gives_features_but_no_labels(tmp_path):
    model = load(write_tiny(tmp_path / "e"))
    assert model.features(voice(0.5), "utterance", rate=16000).shape == (TINY.width,)
    with pytest.raises(UserError, match="no emotion head"):
        model(voice(0.5), rate=16000)


def test_labels_named_unused_in_the_description_get_no_probability(tmp_path):
    model = load(write_tiny(tmp_path / "m", labels=["a", "b"], extra={"unused_labels": ["b"]}))
    assert model(voice(0.5), rate=16000).probabilities == {"a": 1.0}


def test_directories_that_lie_are_refused_before_anything_runs(tmp_path):
    def changed(name, **values):
        folder = write_tiny(tmp_path / name, labels=["a", "b"])
        config = json.loads((folder / "config.json").read_text())
        for key, value in values.items():
            if isinstance(value, dict):
                config[key] = {**config[key], **value}
            else:
                config[key] = value
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    for folder, match in (
        (tmp_path / "nowhere", "no model directory"),
        (changed("kind", kind="qwen2"), "kind 'qwen2'"),
        (changed("width", model={"width": 48}), "has shape"),
        (changed("huge", model={"width": 3 * 10**7}), "has shape"),
        (changed("field", model={"widht": 48}), "did you mean 'width'"),
        (changed("type", model={"width": "wide"}), "config.json"),
        (changed("labels", labels=["a", "b", "c"]), "proj/kernel has shape"),
        (changed("depth", model={"alibi": False}), "does not call for"),
    ):
        with pytest.raises(UserError, match=match):
            load(folder)
    folder = changed("settings")
    with pytest.raises(UserError, match="batch seconds"):
        load(folder, batch_seconds=0)
    with pytest.raises(UserError, match="window seconds"):
        load(folder, window_seconds=1)


def test_a_fingerprint_is_that_of_what_decides_the_answers(tmp_path):
    def changed(name, seed=0, **values):
        folder = write_tiny(tmp_path / name, labels=["a", "b"], seed=seed)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}, indent=3))
        return fingerprint(folder)

    same = changed("same")
    assert changed("later", written_with={"jax": "9"}, origin={"by": "x"}, licence="MIT") == same
    other = [changed("labels", labels=["b", "a"]), changed("params", seed=1)]
    other += [changed("kind", kind="emotion2vec"), changed("extra", extra={"unused_labels": ["b"]})]
    assert len({same, *other}) == 5


def test_a_model_that_gives_nan_is_reported_per_file(tmp_path, directory):
    params = jax.tree.map(np.array, tiny_params(TINY, 2))
    model = load(write_tiny(tmp_path / "m", labels=["a", "b"]))
    params["encoder"]["extra_tokens"][:] = np.nan
    model.engine._params = jax.device_put(params)
    with pytest.raises(UserError, match="not finite"):
        model(voice(0.5), rate=16000)


def test_importing_the_package_does_not_import_jax():
    import subprocess
    import sys

    code = "import c2ser_jax, sys; assert 'jax' not in sys.modules; print(c2ser_jax.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
