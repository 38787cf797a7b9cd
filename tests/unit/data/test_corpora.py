"""File names of the corpora become utterances; the command writes the manifest and counts."""

import json
from pathlib import Path, PurePath

import numpy as np
import pytest
import soundfile

from c2ser_jax.data.corpora import cremad, emodb, ravdess, savee, turevdb, urdu
from c2ser_jax.data.corpora.__main__ import main
from c2ser_jax.data.corpora.corpus import prepare
from c2ser_jax.data.corpora.emobox import LANGUAGES, fold_lists, label_map, listed, prepare_emobox
from c2ser_jax.data.manifest import read_manifest
from c2ser_jax.errors import UserError

EMOBOX = Path(__file__).parents[4] / "shared" / "data" / "emobox"
CREMAD = EMOBOX.parent / "cremad"
KIDS, DOGS = "Kids are talking by the door.", "Dogs are sitting by the door."


@pytest.mark.parametrize(
    ("parse", "path", "speaker", "label", "language", "text"),
    [
        (emodb.parse, "wav/03a01Fa.wav", "03", "happy", "de", emodb.SENTENCES["a01"]),
        (emodb.parse, "16b10Aa.flac", "16", "fearful", "de", emodb.SENTENCES["b10"]),
        (ravdess.parse, "A/03-01-05-01-02-01-18.wav", "18", "angry", "en", DOGS),
        (ravdess.parse, "03-01-01-01-01-02-03.wav", "03", "neutral", "en", KIDS),
        (cremad.parse, "A/1001_IEO_HAP_LO.wav", "1001", "happy", "en", "It's eleven o'clock."),
        (cremad.parse, "1091_WSI_DIS_XX.wav", "1091", "disgusted", "en", cremad.SENTENCES["WSI"]),
        (urdu.parse, "Neutral/SM20_F8_N012.wav", "SM20", "neutral", "ur", None),
        (urdu.parse, "SF1_F21_A021.wav", "SF1", "angry", "ur", None),
        (turevdb.parse, "Sound Source/Calm/1984_sk_dil.wav", "1984", "calm", "tr", "dil"),
        (turevdb.parse, "7895_hl_su.wav", "7895", "sad", "tr", "su"),
        (savee.parse, "KL_su02.wav", "KL", "surprised", "en", None),
        (savee.parse, "AudioData/DC/a01.wav", "DC", "angry", "en", None),
        (savee.parse, "JE_sa08.wav", "JE", "sad", "en", None),
    ],
)  # fmt: skip
def test_names_give_speaker_label_and_text(parse, path, speaker, label, language, text):
    row = parse(PurePath(path))
    assert (row.speaker, row.label, row.language, row.text) == (speaker, label, language, text)


@pytest.mark.parametrize(
    ("parse", "path"),
    [
        (emodb.parse, "03a01Xa.wav"),
        (emodb.parse, "readme.wav"),
        (ravdess.parse, "03-02-05-01-02-01-18.wav"),  # a song
        (ravdess.parse, "03-01-09-01-02-01-18.wav"),
        (cremad.parse, "1001_IEO_JOY_LO.wav"),
        (urdu.parse, "SX1_F21_A021.wav"),
        (turevdb.parse, "1984_xx_dil.wav"),
        (savee.parse, "AB_a01.wav"),
    ],
)
def test_names_of_another_kind_are_foreign(parse, path):
    assert parse(PurePath(path)) is None


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(800), 16000)


def test_copies_and_foreign_files_are_left_out_and_told(tmp_path):
    name = "03-01-05-01-02-01-18.wav"
    write(tmp_path, f"Actor_18/{name}", f"audio_speech_actors_01-24/Actor_18/{name}", "intro.wav")
    prepared = prepare(ravdess.CORPUS, tmp_path)
    assert [row.id for row in prepared.utterances] == [name[:-4]]
    assert prepared.repeated == [f"audio_speech_actors_01-24/Actor_18/{name}"]
    assert prepared.foreign == ["intro.wav"]


def test_a_wrong_folder_is_refused_with_what_is_there(tmp_path):
    write(tmp_path, "03a01Fa.wav")
    with pytest.raises(UserError, match="no file of SAVEE.*03a01Fa.wav"):
        prepare(savee.CORPUS, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        prepare(savee.CORPUS, tmp_path / "none")


def test_the_command_writes_a_manifest_and_counts(tmp_path, capsys):
    write(tmp_path / "c", "wav/03a01Fa.wav", "wav/08a01Wa.wav", "wav/08a02Wa.wav")
    (tmp_path / "c" / "metadata.jsonl").write_text(
        json.dumps({"index": "03a01Fa", "wav": "wav/03a01Fa.wav", "age": 31}) + "\n"
    )
    output = tmp_path / "c" / "manifest.jsonl"
    code = main(["emodb", "--root", str(tmp_path / "c"), "--output", str(output)])
    captured = capsys.readouterr()
    assert code == 1 and "532 utterances are missing" in captured.err
    assert "emodb: 3 of 535 utterances" in captured.out
    table = [line.split() for line in captured.out.splitlines()[1:5]]
    assert table == [
        ["speaker", "angry", "happy", "all"],
        ["03", "0", "1", "1"],
        ["08", "2", "0", "2"],
        ["2", "speakers", "2", "1", "3"],
    ]
    rows = read_manifest(output)
    assert [row.label for row in rows] == ["happy", "angry", "angry"]
    assert rows[0].extra["age"] == 31 and Path(rows[0].path).exists()


def test_wrong_usage_of_the_command(tmp_path, capsys):
    with pytest.raises(UserError, match="--lists belongs to emobox"):
        main(["emobox", "--root", str(tmp_path), "--output", "x"])
    with pytest.raises(SystemExit) as stop:
        main(["nonesuch", "--root", str(tmp_path), "--output", "x"])
    assert stop.value.code == 2
    capsys.readouterr()


def test_cremad_reads_the_actors_table(tmp_path):
    write(tmp_path, "AudioWAV/1001_IEO_HAP_LO.wav")
    header = '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n'
    (tmp_path / "VideoDemographics.csv").write_text(header)
    (row,) = cremad.prepare_cremad(tmp_path).utterances
    assert (row.extra["sex"], row.extra["age"]) == ("m", 51)
    assert cremad.listed_names(tmp_path) is None


def emobox_set(folder, name="emodb", labels=("neutral", "boredem", "anger"), mapped=None):
    """A small EmoBox set: three utterances, two folds."""
    keys = ["03a01Na", "08a02La", "09a04Wa"]
    rows = [
        {"key": f"{name}-{key}", "dataset": name, "emo": emo, "channel": 1}
        | {"wav": f"downloads/{name}/wav/{key}.wav"}
        for key, emo in zip(keys, labels, strict=True)
    ]
    for fold, test in ((1, 0), (2, 1)):
        part = folder / f"fold_{fold}"
        part.mkdir(parents=True)
        for kind, chosen in (
            ("test", [rows[test]]),
            ("train", [r for r in rows if r != rows[test]]),
        ):
            text = "".join(json.dumps(row) + "\n" for row in chosen)
            (part / f"{name}_{kind}_fold_{fold}.jsonl").write_text(text)
            (part / f"{name}_{kind}_fold{fold}.jsonl").write_text(text)  # the older twin
    mapped = mapped or {"anger": "Angry", "boredem": "Boredom", "Neutral": "Neutral"}
    (folder / "label_map.json").write_text(json.dumps(mapped))
    return folder


def test_emobox_lists_join_with_audio_in_any_of_its_places(tmp_path):
    lists = emobox_set(tmp_path / "lists" / "emodb")
    assert label_map(lists) == {"anger": "angry", "boredem": "bored", "neutral": "neutral"}
    audio = tmp_path / "audio"
    write(audio, "downloads/emodb/wav/03a01Na.wav", "wav/08a02La.wav", "deep/er/09a04Wa.flac")
    prepared = prepare_emobox(audio, lists)
    names = ["emodb-03a01Na", "emodb-08a02La", "emodb-09a04Wa"]
    assert [row.id for row in prepared.utterances] == names
    assert [row.label for row in prepared.utterances] == ["neutral", "bored", "angry"]
    assert [row.speaker for row in prepared.utterances] == ["03", "08", "09"]
    assert all(Path(row.path).exists() for row in prepared.utterances)


def test_emobox_tells_what_is_not_there(tmp_path, capsys):
    lists = emobox_set(tmp_path / "lists" / "emodb")
    write(tmp_path / "audio", "03a01Na.wav")
    output = str(tmp_path / "m.jsonl")
    arguments = ["emobox", "--root", str(tmp_path / "audio"), "--lists", str(lists)]
    assert main([*arguments, "--output", output]) == 1
    assert "left out 2 files not found" in capsys.readouterr().out
    write(tmp_path / "void", "x.wav")
    with pytest.raises(UserError, match="none of the 3 listed files"):
        prepare_emobox(tmp_path / "void", lists)


def test_emobox_defects_have_sentences(tmp_path):
    odd = emobox_set(tmp_path / "odd", labels=("neutral", "odd", "anger"))
    with pytest.raises(UserError, match="'odd' of 'emodb-08a02La' is not in the label map"):
        listed(odd)
    words = emobox_set(tmp_path / "words", mapped={"anger": "Bluish"})
    with pytest.raises(UserError, match="'Bluish'"):
        label_map(words)
    (tmp_path / "words" / "label_map.json").unlink()
    with pytest.raises(UserError, match="label_dict.json"):
        label_map(words)
    with pytest.raises(UserError, match="no EmoBox lists"):
        fold_lists(tmp_path)


# The smaller sets: utterances and classes as their README counts them, speakers as we read them.
SETS = {
    "aesdd": (604, 5, 6),
    "casia": (1200, 6, 4),
    "emodb": (535, 7, 10),
    "emovo": (588, 7, 6),
    "mesd": (862, 6, 0),
    "ravdess": (1440, 8, 24),
    "savee": (480, 7, 4),
    "turevdb": (1735, 4, 6),
    "urdu": (400, 4, 29),
}


@pytest.mark.parametrize("name", ["made", *(n for n in SETS if (EMOBOX / n).is_dir())])
def test_emobox_lists_parse_whole(tmp_path, name):
    counts = SETS.get(name, (3, 3, 3))
    folder = EMOBOX / name if name in SETS else emobox_set(tmp_path / "emodb")
    rows = listed(folder)
    speakers = {row.speaker for row in rows} - {None}
    assert (len(rows), len({row.label for row in rows}), len(speakers)) == counts
    assert {row.language for row in rows} == {LANGUAGES[folder.name]}


@pytest.mark.parametrize("place", ["made", *([CREMAD] if CREMAD.is_dir() else [])])
def test_cremads_own_list_parses_whole(tmp_path, place):
    folder, count = (tmp_path, 24) if place == "made" else (place, 7442)
    if place == "made":
        made = [f"1001_{s}_{e}_XX" for s in cremad.SENTENCES for e in ("ANG", "SAD")]
        table = "".join(f'{i},"{name}"\n' for i, name in enumerate(made, 1))
        (folder / "SentenceFilenames.csv").write_text(f'"Stimulus_Number","Filename"\n{table}')
    names = cremad.listed_names(folder) or []
    rows = [cremad.parse(PurePath(f"{name}.wav")) for name in names]
    assert len(rows) == count and None not in rows
