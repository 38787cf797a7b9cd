"""Every list layout reads to the same utterances, and every defect of a list has a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from c2ser_jax.data.manifest import Utterance, read_manifest, write_manifest
from c2ser_jax.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def corpus(tmp_path):
    """Two audio files in a folder of their own; the lists lie elsewhere."""
    root = tmp_path / "corpus"
    for name in ("one", "two"):
        (root / "wav").mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "wav" / f"{name}.wav", np.zeros(800), 16000)
    return root


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


LAYOUTS = {
    "own.jsonl": lines(
        {"id": "one", "path": "wav/one.wav", "label": "sad"},
        {"id": "two", "path": "wav/two.wav", "label": "happy"},
    ),
    "emilia.jsonl": lines(
        {"index": "one", "emotion": "sad", "wav": "./wav/one.wav", "text": " Hello."},
        {"index": "two", "emotion": "happy", "wav": "./wav/two.wav", "text": "你好"},
    ),
    "data.list": lines(
        {"key": "one", "wav": "wav/one.wav", "txt": "hello", "emotion": "sad", "lang": "en"},
        {"key": "two", "wav": "wav/two.wav", "txt": "again", "emotion": "happy", "lang": "en"},
    ),
    "emobox.jsonl": lines(
        {"key": "one", "wav": "wav/one.wav", "emo": "sad", "channel": 1, "length": 0.05},
        {"key": "two", "wav": "wav/two.wav", "emo": "happy", "channel": 1, "length": 0.05},
    ),
    "older_emobox.jsonl": lines(
        {"key": "one", "audio": "wav/one.wav", "label": "sad"},
        {"key": "two", "audio": "wav/two.wav", "label": "happy"},
    ),
    "emobox.json": json.dumps(
        {
            "one": {"wav": "wav/one.wav", "emo": "sad"},
            "two": {"wav": "wav/two.wav", "emo": "happy"},
        },
        indent=4,
    ),
    "compact.json": json.dumps(
        {"one": {"wav": "wav/one.wav", "emo": "sad"}, "two": {"wav": "wav/two.wav", "emo": "happy"}}
    ),
    "rows.json": json.dumps(
        [{"id": "one", "path": "wav/one.wav", "label": "sad"}]
        + [{"id": "two", "path": "wav/two.wav", "label": "happy"}]
    ),
    "funasr.jsonl": lines(
        {"key": "one", "source": "wav/one.wav", "label": "sad"},
        {"key": "two", "source": "wav/two.wav", "label": "happy"},
    ),
    "commas.csv": 'path,emotion,text\nwav/one.wav,sad,"well, no"\nwav/two.wav,happy,\n',
    "modal.csv": "audio_file,raw_text,label,session\nwav/one.wav,a,sad,1\nwav/two.wav,b,happy,2\n",
    "tabs.tsv": "\ufeffid\tfile\tlabel\none\twav/one.wav\tsad\ntwo\twav/two.wav\thappy\n",
    "wav.scp": "one wav/one.wav\ntwo\twav/two.wav\n",
    "scp": "one wav/one.wav\n\ntwo wav/two.wav\n",
    "paths.txt": "wav/one.wav\nwav/two.wav\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_reads_to_the_same_utterances(corpus, tmp_path, name):
    (tmp_path / name).write_text(LAYOUTS[name], encoding="utf-8")
    rows = read_manifest(tmp_path / name, root=corpus)
    assert [row.id for row in rows] == ["one", "two"]
    assert [Path(row.path) for row in rows] == [corpus / "wav/one.wav", corpus / "wav/two.wav"]
    labelled = name not in ("wav.scp", "scp", "paths.txt")
    assert [row.label for row in rows] == (["sad", "happy"] if labelled else [None, None])


def test_fields_beyond_the_path_are_kept(tmp_path):
    row = {"key": "a", "wav": "a.wav", "txt": " Hi. ", "spk": 7, "lang": "en", "dataset": "x"}
    row |= {"start_time": "1.5", "end_time": 2, "channel": 2, "duration": 9.5}
    (tmp_path / "list.jsonl").write_text(lines(row))
    (got,) = read_manifest(tmp_path / "list.jsonl")
    assert (got.text, got.speaker, got.language, got.corpus) == ("Hi.", "7", "en", "x")
    assert (got.start, got.end, got.channel) == (1.5, 2.0, 2)
    assert got.extra == {"channel": 2, "duration": 9.5}


def test_paths_are_looked_up_under_the_root_then_beside_the_list(corpus, tmp_path):
    other = tmp_path / "other"
    (other / "wav").mkdir(parents=True)
    soundfile.write(other / "wav" / "two.wav", np.zeros(800), 16000)
    (corpus / "list.txt").write_text("wav/one.wav\nwav/two.wav\nwav/none.wav\n")
    rows = read_manifest(corpus / "list.txt", root=other)
    assert Path(rows[0].path) == corpus / "wav/one.wav"
    assert Path(rows[1].path) == other / "wav/two.wav"
    assert Path(rows[2].path).name == "none.wav"  # reading the audio will call it missing


def test_a_folder_names_its_files_by_their_place(corpus):
    soundfile.write(corpus / "top.flac", np.zeros(800), 16000)
    soundfile.write(corpus / "top.wav", np.zeros(800), 16000)
    (corpus / "notes.txt").write_text("no audio")
    (corpus / "._top.wav").write_text("what macOS leaves in archives")
    assert [r.id for r in read_manifest(corpus)] == ["top.flac", "top.wav", "wav-one", "wav-two"]


def test_files_named_on_the_command_line_are_utterances(corpus):
    rows = read_manifest([corpus / "wav" / "two.wav", corpus / "wav" / "gone.wav"])
    assert [row.id for row in rows] == ["two", "gone"]
    with pytest.raises(UserError, match="'two' occurs twice"):
        read_manifest([corpus / "wav" / "two.wav", corpus / "wav" / "two.wav"])


def test_lists_without_ids_take_more_of_the_path_where_names_repeat(tmp_path):
    (tmp_path / "l.txt").write_text("a/x.wav\nb/x.wav\n")
    assert [row.id for row in read_manifest(tmp_path / "l.txt")] == ["a-x", "b-x"]


def test_paths_with_spaces_stay_whole(tmp_path):
    folder = tmp_path / "Mexican Speech (MESD)"
    folder.mkdir()
    soundfile.write(folder / "a 1 (2).wav", np.zeros(800), 16000)
    for name, text in (
        ("wav.scp", f"u1 {folder}/a 1 (2).wav\n"),
        ("paths.txt", f"{folder}/a 1 (2).wav\n"),
    ):
        (tmp_path / name).write_text(text)
        (row,) = read_manifest(tmp_path / name)
        assert Path(row.path) == folder / "a 1 (2).wav"


def test_fairseq_tsv_starts_with_its_folder(corpus, tmp_path):
    (tmp_path / "train.tsv").write_text(f"{corpus}\nwav/one.wav\t800\nwav/two.wav\t800\n")
    rows = read_manifest(tmp_path / "train.tsv")
    assert [Path(row.path) for row in rows] == [corpus / "wav/one.wav", corpus / "wav/two.wav"]


def test_own_layout_survives_a_round_trip_and_a_move(corpus, tmp_path):
    rows = [
        Utterance(
            "one", str(corpus / "wav/one.wav"), 0.5, 1.0, "sad", "s", "de", "c", "Töne", {"a": 1}
        ),
        Utterance("far", "/elsewhere/far.wav"),
    ]
    write_manifest(corpus / "manifest.jsonl", rows)
    assert read_manifest(corpus / "manifest.jsonl") == rows
    moved = corpus.rename(tmp_path / "moved")
    assert read_manifest(moved / "manifest.jsonl")[0].path == str(moved / "wav/one.wav")


DEFECTS = {
    "empty.jsonl": ("\n\n", "empty"),
    "broken.jsonl": ('{"id": "a", "path": "a.wav"}\n{"id": "b", \n', "line 2"),
    "list_row.jsonl": ('{"id": "a", "path": "a.wav"}\n{"id": 1}\n', "line 2.*no path"),
    "no_path.jsonl": ('{"id": "a", "emotion": "sad"}\n', "no path of the audio"),
    "start.jsonl": ('{"id": "a", "path": "a.wav", "start": -1}\n', "start must be seconds"),
    "channel.jsonl": ('{"id": "a", "path": "a.wav", "channel": "left"}\n', "channel must be"),
    "twice.jsonl": ('{"id": "a", "path": "a.wav"}\n{"id": "a", "path": "b.wav"}\n', "a.wav.*b.wav"),
    "ragged.csv": ("path,label\na.wav,sad,more\n", "line 2: 3 cells"),
    "headless.csv": ("a.csv,sad\nb.csv,happy\n", "accepted are"),
    "pipe.scp": ("a sox x.wav -t wav - |\n", "commands are not run"),
    "one_column.scp": ("a a.wav\nb\n", "line 2.*'id path'"),
    "prose.txt": ("This is not a list.\nReally not.\n", "accepted are"),
    "number.json": ("[1, 2]", "neither a list of rows"),
    "broken.json": ("[{", "not valid JSON"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_of_a_list_has_a_sentence(tmp_path, name):
    text, sentence = DEFECTS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read_manifest(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_lists_roots_and_binary_files_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x02\xff\x00")
    for source, sentence in (("none.jsonl", "no such list"), ("model.bin", "UTF-8")):
        with pytest.raises(UserError, match=sentence):
            read_manifest(tmp_path / source)
    with pytest.raises(UserError, match="no audio file"):
        (tmp_path / "void").mkdir()
        read_manifest(tmp_path / "void")
    with pytest.raises(UserError, match="root folder"):
        read_manifest(tmp_path / "void", root=tmp_path / "none")
    with pytest.raises(UserError, match="no input"):
        read_manifest([])


@pytest.mark.parametrize("place", ["made", *([SHARED] if SHARED.is_dir() else [])])
def test_whole_lists_are_read_and_three_forms_of_one_agree(corpus, tmp_path, place):
    if place == "made":
        place, counts = tmp_path / "made", (2, 2)
        fold = place / "emobox" / "emodb" / "fold_1"
        for path, layout in (
            (place / "emo_emilia" / "Emo-Emilia-ALL.jsonl", "emilia.jsonl"),
            (place / "emodb" / "metadata.jsonl", "emilia.jsonl"),
            (fold / "emodb_test_fold_1.jsonl", "emobox.jsonl"),
            (fold / "emodb_test_fold1.jsonl", "older_emobox.jsonl"),
            (fold / "emodb_test_fold_1.json", "emobox.json"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(LAYOUTS[layout], encoding="utf-8")
        (corpus / "wav").rename(place / "emodb" / "wav")
    else:
        counts = (1400, 535)
    emilia = read_manifest(place / "emo_emilia" / "Emo-Emilia-ALL.jsonl")
    rows = read_manifest(place / "emodb" / "metadata.jsonl")
    assert (len(emilia), len(rows)) == counts and all(Path(row.path).exists() for row in rows)
    fold = place / "emobox" / "emodb" / "fold_1"
    names = ["emodb_test_fold_1.jsonl", "emodb_test_fold1.jsonl", "emodb_test_fold_1.json"]
    forms = {tuple((r.id, r.label) for r in read_manifest(fold / name)) for name in names}
    assert len(forms) == 1 and all(forms)


def test_emo_emilias_own_list_knows_languages_and_finds_its_files(tmp_path):
    """Its ids begin with the language; the root may be the folder that holds the files."""
    name = "ZH_B00090_S00350_W000000"
    row = {"index": name, "emotion": "angry", "wav": f"./Emo-Emilia/wav/{name}.wav", "text": "好"}
    other = {**row, "index": "ZH_extra", "wav": "./Emo-Emilia/wav/none.wav"}
    (tmp_path / "list").mkdir()
    path = tmp_path / "list" / "all.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    for folder in ("a/Emo-Emilia/wav", "b/wav", "c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.wav").write_bytes(b"")
        root = tmp_path / folder[0]
        first, second = read_manifest(path, root=root)
        assert first.path == str(tmp_path / folder / f"{name}.wav")
        assert (first.language, first.label, first.text) == ("zh", "angry", "好")
        assert second.path == str(root / "Emo-Emilia/wav/none.wav") and second.language is None
