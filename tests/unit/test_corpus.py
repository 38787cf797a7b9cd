"""From the `data` section of a run to folds."""

import json

import numpy as np

from c2ser_jax.config import CorpusConfig
from c2ser_jax.corpus import make_folds, read_corpus, sample_audio
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import FileSource
from tests.tiny_models import voice, write_wav


def write_lists(folder, names):
    for part in ("train", "test"):
        lines = [{"key": f"set-{name}", "wav": f"{name}.wav", "emo": "x"} for name in names[part]]
        (folder / "fold_1").mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "fold_1" / f"set_{part}_fold_1.jsonl").write_text(text, encoding="utf-8")


def test_lists_go_on_without_a_broken_file_and_follow_the_seed(tmp_path):
    names = [f"{i}-{label}" for i in range(20) for label in "ab"]
    rows = []
    for name in names:
        write_wav(tmp_path / f"{name}.wav", voice(0.1, len(rows)))
        rows.append({"id": name, "path": f"{name}.wav", "label": name[-1], "speaker": name[0]})
    (tmp_path / "3-a.wav").write_bytes(b"")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_lists(tmp_path / "lists", {"train": names[:30], "test": names[30:]})
    cfg = CorpusConfig(
        corpus="manifest", manifest=str(manifest), protocol="lists", lists=str(tmp_path / "lists")
    )
    source, bad = read_corpus(cfg)
    (first,), (other,) = (make_folds(cfg, source, seed, bad) for seed in (0, 1))
    assert [file.id for file in bad] == ["3-a"]
    assert {u.id for u in first.test} == set(names[30:])
    assert {u.id for u in (*first.train, *first.dev)} == set(names[:30]) - {"3-a"}
    assert [u.id for u in first.dev] != [u.id for u in other.dev]


def test_a_sample_of_audio_is_bounded_seeded_and_without_bad_files(tmp_path):
    rows = []
    for i in range(6):
        write_wav(tmp_path / f"{i}.wav", voice(1.0 + 0.1 * i, i))
        rows.append(Utterance(str(i), str(tmp_path / f"{i}.wav")))
    (tmp_path / "2.wav").write_bytes(b"")
    source = FileSource(rows)
    whole = sample_audio(source, 60.0, seed=0)
    assert [len(audio) for audio in whole] == [16000, 17600, 20800, 22400, 24000]
    for audio, i in zip(whole, (0, 1, 3, 4, 5), strict=True):
        np.testing.assert_array_equal(audio, source.load(i)[0])
    parts = [sample_audio(source, 3.0, seed=seed) for seed in range(5)]
    assert all(sum(map(len, part)) == 48000 for part in parts)
    assert len({tuple(map(len, part)) for part in parts}) > 1
    again = sample_audio(source, 3.0, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(again, parts[3], strict=True))
