"""A manifest of a hundred rows with one of each kind of bad file, for tests of every command."""

import json
from pathlib import Path

import numpy as np
import soundfile

LABELS = ("angry", "happy", "neutral", "sad")
RATE = 16_000


def make_bad_manifest(
    folder: Path | str, ordinary: int = 91, long_seconds: float = 1200.0
) -> tuple[Path, dict[str, str], list[str]]:
    """Writes audio and `manifest.jsonl`; returns (its path, {bad id: reason}, good ids).

    Bad: missing, empty, truncated, not audio, 0.01 s, NaN. Good but unusual: 8 channels, 192 kHz,
    a recording of `long_seconds`. Ordinary: 0.3 to 1 s. Every row has a label and a speaker.
    """
    folder = Path(folder)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(8)
    rows: list[dict] = []

    def add(name: str, suffix: str = ".wav") -> Path:
        path = folder / "audio" / f"{name}{suffix}"
        label, speaker = LABELS[len(rows) % len(LABELS)], f"s{len(rows) % 5}"
        rows.append({"id": name, "path": f"audio/{path.name}", "label": label, "speaker": speaker})
        return path

    def hum(seconds: float, rate: int = RATE) -> np.ndarray:
        time = np.arange(round(seconds * rate)) / rate
        pitch, beat = rng.uniform(90, 250), rng.uniform(2, 6)
        voice = np.sign(np.sin(2 * np.pi * pitch * time)) * (1.2 + np.sin(2 * np.pi * beat * time))
        return 0.1 * voice + 0.01 * rng.uniform(-1, 1, len(time))

    for i in range(ordinary):
        suffix = (".wav", ".flac")[i % 2]
        soundfile.write(add(f"ordinary-{i:03d}", suffix), hum(rng.uniform(0.3, 1.0)), RATE)

    bad = {
        "bad-missing": "missing",
        "bad-empty": "empty",
        "bad-truncated": "unreadable",
        "bad-text": "unreadable",
        "bad-short": "too short",
        "bad-nan": "not finite",
    }
    add("bad-missing")
    add("bad-empty").write_bytes(b"")
    path = add("bad-truncated")
    soundfile.write(path, hum(1.0), RATE)
    path.write_bytes(path.read_bytes()[:9000])
    add("bad-text").write_text("This is a letter, not a recording.\n" * 50)
    soundfile.write(add("bad-short"), hum(0.01), RATE)
    broken = hum(0.5)
    broken[4000] = np.nan
    soundfile.write(add("bad-nan"), broken, RATE, subtype="FLOAT")

    soundfile.write(add("good-channels"), np.stack([hum(0.8) for _ in range(8)], axis=1), RATE)
    soundfile.write(add("good-192khz"), hum(0.9, 192_000), 192_000, subtype="PCM_24")
    piece = np.round(32767 * hum(10.0)).astype(np.int16)
    with soundfile.SoundFile(add("good-long"), "w", RATE, 1, "PCM_16") as file:
        for start in range(0, round(long_seconds * RATE), len(piece)):
            level = 1 + (start // len(piece)) % 3
            file.write(piece[: round(long_seconds * RATE) - start] // level)

    order = rng.permutation(len(rows))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(rows[i]) + "\n" for i in order), encoding="utf-8")
    good = [rows[i]["id"] for i in order if rows[i]["id"] not in bad]
    return manifest, bad, good
