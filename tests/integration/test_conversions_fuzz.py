"""A thousand damaged checkpoints: each converts or is refused in a sentence, none runs code."""

import io
import os
import random
import re
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from c2ser_jax.errors import UserError
from conversions.__main__ import main
from conversions.emotion2vec_import import Options, prepare
from conversions.reader import open_checkpoint
from tests.golden_roots import golden_cases
from tests.unit.conversions.files import legacy_bytes, out_tree, write

CONTROL = golden_cases("emotion2vec/hostile")[0] / "valid_control.pt"
SECONDS = 10.0
OPCODES = b"()0129FGIJKLMNPQRSTUVXabcdeghijlopqrstu]}\x80\x81\x85\x88\x8a\x8b\x8c\x90\x93\x94\x95"
EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen",
          "pickle.find_class", "socket.connect", "shutil.rmtree", "os.remove", "os.rename",
          "ctypes.dlopen", "code.__new__")  # fmt: skip

_seen: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    """Notes what a file should never cause; `_seen` switches it, for it can't be removed."""
    if _seen is None:
        return
    if event in EVENTS:
        _seen.append(f"{event} {arguments!r:.80}")
    elif event == "open" and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _seen.append(f"open for writing {arguments!r:.80}")


sys.addaudithook(_watch)


def flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 30))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def remove(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 8, 300)) :]


def insert(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.choice((1, 8, 300))) + data[start:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.choice((1, 20, 500))] * 2 + data[start:]


def overwrite_numbers(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(max(1, len(data) - 8))
    value = rng.choice((0, 1, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62))
    return (
        data[:start] + value.to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))] + data[start + 8 :]
    )


def swap_operation(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        out[rng.randrange(len(out))] = rng.choice(OPCODES)
    return bytes(out)


ANYWHERE = (flip, cut, remove, insert, repeat, overwrite_numbers)


def zip_directory(rng: random.Random, data: bytes) -> bytes:
    """Damages the archive's own records: local headers, central directory, end."""
    place = rng.choice([found.start() for found in re.finditer(rb"PK[\x01-\x07]", data)])
    head = data[place : place + 60]
    return data[:place] + rng.choice((flip, overwrite_numbers))(rng, head) + data[place + 60 :]


def inside_zip(rng: random.Random, data: bytes) -> bytes:
    """Damages the pickle and packs it again, so that no checksum gives the damage away."""
    source, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            part = source.read(info)
            if info.filename.endswith("data.pkl"):
                part = rng.choice((*ANYWHERE, swap_operation, swap_operation))(rng, part)
            target.writestr(info.filename, part)
    return out.getvalue()


def pickle_of_old(rng: random.Random, data: bytes) -> bytes:
    """Damages the first part of an old-format file, where its pickles lie."""
    head, rest = data[:22_000], data[22_000:]
    return rng.choice((flip, overwrite_numbers, swap_operation, insert, remove))(rng, head) + rest


def attempt(path: Path) -> str:
    """Reads everything a conversion would; "" when it converts, else the sentence."""
    try:
        prepared = prepare(open_checkpoint(path), Options())
        for *_, make in (*prepared.plan.leaves(), *prepared.carrier.leaves()):
            make()
    except UserError as refusal:
        return str(refusal)
    return ""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    tree = open_checkpoint(CONTROL).tree
    old = write(folder, "old.pt", legacy_bytes(out_tree(tree)))
    model, flat = folder / "model", folder / "flat.safetensors"
    assert main(["emotion2vec", "--from", str(CONTROL), "--to", str(model)]) == 0
    assert main(["export", "emotion2vec", "--from", str(model), "--to", str(flat)]) == 0
    assert attempt(old) == attempt(flat) == attempt(CONTROL) == ""
    return {"zip": CONTROL.read_bytes(), "old": old.read_bytes(), "flat": flat.read_bytes()}


def watched(path: Path) -> tuple[str, float, list[str]]:
    """(outcome, seconds, what happened that never should)."""
    global _seen
    _seen = []
    start = time.perf_counter()
    try:
        outcome = attempt(path)
        return outcome, time.perf_counter() - start, _seen
    finally:
        _seen = None


GROUPS: dict[str, tuple[str, int, tuple[Callable, ...]]] = {
    "anywhere in a zip file": ("zip", 250, ANYWHERE),
    "records of a zip file": ("zip", 150, (zip_directory,)),
    "pickle of a zip file": ("zip", 300, (inside_zip,)),
    "anywhere in an old file": ("old", 100, ANYWHERE),
    "pickles of an old file": ("old", 150, (pickle_of_old,)),
    "a safetensors file": ("flat", 100, ANYWHERE),
}


def test_the_fuzzing_tries_a_thousand_files():
    assert sum(count for _, count, _ in GROUPS.values()) >= 1000


@pytest.mark.parametrize("group", GROUPS)
def test_damaged_files_convert_or_are_refused_in_one_sentence(
    group, sources, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    kind, count, mutations = GROUPS[group]
    rng = random.Random(group)
    folder = tmp_path / "files"
    folder.mkdir()
    refused, worst = 0, 0.0
    for number in range(count):
        mutation = rng.choice(mutations)
        path = write(folder, f"{kind}.pt", mutation(rng, sources[kind]))
        outcome, seconds, seen = watched(path)
        assert not seen, f"{mutation.__name__} {number}: {seen}"
        assert seconds < SECONDS, f"{mutation.__name__} {number}"
        assert "\n" not in outcome and len(outcome) < 2000, f"{mutation.__name__} {number}"
        refused, worst = refused + bool(outcome), max(worst, seconds)
    assert refused > count // 4
    assert [item.name for item in tmp_path.iterdir()] == ["files"]


def test_refused_files_leave_nothing_on_the_disk(sources, tmp_path, monkeypatch):
    rng = random.Random(7)
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        write(tmp_path, "a.pt", cut(rng, sources["zip"]))
        with pytest.raises(UserError):
            main(["emotion2vec", "--from", "a.pt", "--to", f"deep/{number}"])
        assert [item.name for item in tmp_path.iterdir()] == ["a.pt"]


def test_the_watch_notices_what_it_watches_for(tmp_path):
    global _seen
    _seen = []
    try:
        (tmp_path / "a").write_text("x")
        os.system("true")
        assert [note.split()[0] for note in _seen] == ["open", "os.system"]
    finally:
        _seen = None
