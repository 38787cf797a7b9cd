"""Where audio comes from: files, memory, or TensorFlow Datasets.

Shapes: N samples of one utterance at 16 kHz.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from c2ser_jax.data.audio import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    AudioScan,
    BadAudio,
    RunningScan,
    from_array,
    probe_audio,
    read_audio,
    scan_audio,
)
from c2ser_jax.data.manifest import Utterance, check_unique_ids
from c2ser_jax.errors import UserError


class Source(Protocol):
    """Random access to utterances and their audio; must be picklable for worker processes."""

    utterances: list[Utterance]

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[np.ndarray, Utterance]:
        """Returns (float32[N], utterance); raises `BadAudio`."""
        ...

    def load_piece(self, index: int, start: int, samples: int) -> np.ndarray:
        """Returns float32[<= samples] from sample `start` on."""
        ...

    def scan(self, index: int, *, allow_silent: bool) -> AudioScan:
        """Length, statistics and checksum; raises `BadAudio`."""
        ...

    def probe(self, index: int) -> AudioScan:
        """What is known without decoding a file, the length at least; raises `BadAudio`."""
        ...


class FileSource:
    """Audio files of a manifest."""

    def __init__(self, utterances: Sequence[Utterance]):
        check_unique_ids(utterances)
        self.utterances = list(utterances)

    def __len__(self) -> int:
        return len(self.utterances)

    def load(self, index: int) -> tuple[np.ndarray, Utterance]:
        """Decodes the whole utterance: (float32[N], utterance)."""
        row = self.utterances[index]
        audio = read_audio(
            row.path, start_seconds=row.start, end_seconds=row.end, channel=row.channel
        )
        return audio, row

    def load_piece(self, index: int, start: int, samples: int) -> np.ndarray:
        """Decodes float32[<= samples] from sample `start` (at 16 kHz) on, without the rest."""
        row = self.utterances[index]
        begin = (row.start or 0.0) + start / SAMPLE_RATE
        end = begin + samples / SAMPLE_RATE
        stop = end if row.end is None else min(end, row.end)
        piece = read_audio(row.path, start_seconds=begin, end_seconds=stop, channel=row.channel)
        return piece[:samples]

    def scan(self, index: int, *, allow_silent: bool = True) -> AudioScan:
        """Decodes once in bounded memory."""
        row = self.utterances[index]
        return scan_audio(
            row.path,
            start_seconds=row.start,
            end_seconds=row.end,
            channel=row.channel,
            allow_silent=allow_silent,
        )

    def probe(self, index: int) -> AudioScan:
        """What the header promises; statistics are NaN and the checksum is empty."""
        row = self.utterances[index]
        info = probe_audio(row.path)
        end = info.seconds if row.end is None else min(row.end, info.seconds)
        samples = round((end - (row.start or 0.0)) * SAMPLE_RATE)
        if samples < MIN_SAMPLES:
            detail = f"{max(samples, 0)} samples at 16 kHz are too short; {MIN_SAMPLES} are needed"
            raise BadAudio(row.path, "too short", detail)
        return AudioScan(samples, float("nan"), float("nan"), "")


class MemorySource:
    """Decoded audio in memory: pairs of utterance and float32[N] at 16 kHz."""

    def __init__(self, items: Sequence[tuple[Utterance, np.ndarray]]):
        self.utterances = [utterance for utterance, _ in items]
        check_unique_ids(self.utterances)
        self._audio = [np.asarray(audio, np.float32) for _, audio in items]

    def __len__(self) -> int:
        return len(self.utterances)

    def load(self, index: int) -> tuple[np.ndarray, Utterance]:
        """Returns (float32[N], utterance)."""
        row, audio = self.utterances[index], self._audio[index]
        if len(audio) < MIN_SAMPLES:
            raise BadAudio(row.id, "too short", f"only {len(audio)} samples, at least 400 needed")
        return audio, row

    def load_piece(self, index: int, start: int, samples: int) -> np.ndarray:
        """Returns float32[<= samples] from sample `start` on."""
        return self._audio[index][start : start + samples]

    def scan(self, index: int, *, allow_silent: bool = True) -> AudioScan:
        """Length, statistics and checksum of the array."""
        scan = RunningScan(self.utterances[index].id)
        scan.add(self._audio[index])
        return scan.result(allow_silent=allow_silent)

    def probe(self, index: int) -> AudioScan:
        """All that `scan` tells: the array is there."""
        return self.scan(index)


def tfds_source(name: str, *, split: str = "train", data_dir: str | None = None) -> MemorySource:
    """Reads `crema_d` or `savee` through TensorFlow Datasets (extra `tfds`) into memory.

    Raises `UserError` when the extra is not installed or the name is another one.
    """
    if name not in ("crema_d", "savee"):
        raise UserError(f"tfds set {name!r}: only crema_d and savee hold speech emotion")
    try:
        import tensorflow  # noqa: TID251  # pyright: ignore[reportMissingImports]
        import tensorflow_datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"reading {name} from tfds needs TensorFlow: pip install 'c2ser_jax[tfds]'; "
            "without it, give the corpus as files (python -m c2ser_jax.data.corpora)"
        ) from None
    tensorflow.config.set_visible_devices([], "GPU")
    builder: Any = tensorflow_datasets.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    features: Any = builder.info.features
    names, rate = features["label"].names, features["audio"].sample_rate or SAMPLE_RATE
    rows: Any = tensorflow_datasets.as_numpy(builder.as_dataset(split=split))
    items = []
    for i, row in enumerate(rows):
        audio = np.asarray(row["audio"])
        audio = audio.astype(np.int16) if audio.dtype.kind in "iu" else audio
        speaker = row.get("speaker_id")
        speaker = speaker.decode() if isinstance(speaker, bytes) else speaker
        utterance = Utterance(
            f"{name}-{split}-{i:05d}",
            f"tfds:{name}/{split}/{i}",
            label=names[int(row["label"])],
            speaker=None if speaker is None else str(speaker),
            language="en",
            corpus=name,
        )
        items.append((utterance, from_array(audio, int(rate), name=utterance.id)))
    return MemorySource(items)
