"""Opens audio files; what is wrong with one becomes a `BadAudio`: a reason and a sentence."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import soundfile

from c2ser_jax.errors import UserError

REASONS = ("missing", "empty", "unreadable", "too short", "not finite", "silent")

_SLOPPY_BYTES = 256  # some writers count their own header as samples
_RATES = (1_000, 1_000_000)  # an absurd rate would need absurd memory to resample

AudioFile = str | os.PathLike[str] | IO[bytes]


class _Forward(soundfile.SoundFile):
    """A file read from front to back, without soundfile's seek after every block.

    That seek fails at the end of a flac of unknown length and is inexact in mp3.
    """

    def seekable(self) -> bool:
        return False


class BadAudio(UserError):
    """An audio file that cannot be used; `reason` is one of `REASONS`."""

    def __init__(self, name: str, reason: str, detail: str):
        super().__init__(f"{name}: {detail}")
        self.name, self.reason, self.detail = name, reason, detail

    def __reduce__(self):
        return BadAudio, (self.name, self.reason, self.detail)


def audio_name(source: AudioFile) -> str:
    """The path, or a file object's name, for messages."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "audio"))


@contextmanager
def open_audio(source: AudioFile) -> Iterator[tuple[soundfile.SoundFile, str]]:
    """Opens for decoding; every way to fail becomes a `BadAudio`."""
    name = audio_name(source)
    if isinstance(source, str | os.PathLike):
        try:
            if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would wait for ever
                detail = "not a file (a folder, pipe or device); give an audio file"
                raise BadAudio(name, "unreadable", detail)
            stream = open(source, "rb")
        except (FileNotFoundError, NotADirectoryError, ValueError):
            detail = "there is no such file; check the list and the folder its paths start from"
            raise BadAudio(name, "missing", detail) from None
        except OSError as error:
            detail = f"cannot be opened ({error.strerror}); give a readable audio file"
            raise BadAudio(name, "unreadable", detail) from None
    else:
        stream = source
    try:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if size == 0:
            raise BadAudio(name, "empty", "the file has 0 bytes; copy or record it again")
        lost = _missing_wav_bytes(stream, size)
        if lost > _SLOPPY_BYTES or (lost := _missing_ogg_bytes(stream, size)):
            detail = f"cut off: the header promises {lost} bytes more than the file holds"
            raise BadAudio(name, "unreadable", f"{detail}; copy it again")
        stream.seek(0)
        try:
            opened: Any = stream if stream is source else name  # a path decodes without the GIL
            file = _Forward(opened)
        except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
            detail = f"not readable as audio ({error_text(error)}); give wav, flac, ogg or mp3"
            raise BadAudio(name, "unreadable", detail) from None
        with file:
            if file.frames <= 0:
                if file.format == "OGG":
                    raise BadAudio(name, "unreadable", "cut off: no end found; copy it again")
                raise BadAudio(name, "empty", "the file has no samples; copy or record it again")
            if not _RATES[0] <= file.samplerate <= _RATES[1]:
                detail = f"the header gives {file.samplerate} Hz, outside of {_RATES} Hz; mend it"
                raise BadAudio(name, "unreadable", detail)
            yield file, name
    finally:
        if stream is not source:
            stream.close()


def _missing_wav_bytes(stream: IO[bytes], size: int) -> int:
    """How many bytes of samples a WAV header promises beyond the end of the file (else 0)."""
    head = stream.read(12)
    if head[:4] not in (b"RIFF", b"RIFX") or head[8:] != b"WAVE":
        return 0
    order = "little" if head[:4] == b"RIFF" else "big"
    place = 12
    while place + 8 <= size:
        stream.seek(place)
        chunk = stream.read(8)
        length = int.from_bytes(chunk[4:], order)
        if chunk[:4] == b"data":
            streamed = length >= 0x7FFFF000  # written to a pipe: the length was never filled in
            return 0 if streamed else max(0, place + 8 + length - size)
        place += 8 + length + length % 2
    return 0


def _missing_ogg_bytes(stream: IO[bytes], size: int) -> int:
    """How many bytes the last Ogg page lacks (0 for whole pages and other formats)."""
    stream.seek(0)
    if stream.read(4) != b"OggS":
        return 0
    start = max(0, size - (1 << 17))  # a page has at most 65 307 bytes
    stream.seek(start)
    tail = stream.read(size - start)
    page = tail[tail.rfind(b"OggS") :]
    table = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) <= 26 or len(table) < page[26]:
        return 1
    return max(0, 27 + len(table) + sum(table) - len(page))


def error_text(error: Exception) -> str:
    """libsndfile's words without its punctuation."""
    text = str(getattr(error, "error_string", error)) or type(error).__name__
    return text.strip().rstrip(".:") or "unknown format"
