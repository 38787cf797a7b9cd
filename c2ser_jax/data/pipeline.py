"""From a source of utterances to batches of fixed shapes; position is a pure function of the step.

Shapes: B rows of this process's share of the batch, N samples of the bucket.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from c2ser_jax.data.audio import SAMPLE_RATE, BadAudio, check_not_silent
from c2ser_jax.data.augmentation import AugmentConfig, augment, mix_piece
from c2ser_jax.data.batching import BatchPlan, bucket_edges, bucket_rows, evaluation_batches
from c2ser_jax.data.labels import map_labels
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.prefetch import Prefetched
from c2ser_jax.data.scanning import BadFile, Scanned, listing, scan_source
from c2ser_jax.data.sources import Source
from c2ser_jax.errors import UserError

_FOREVER = 1 << 40  # steps


@dataclass(frozen=True)
class DataConfig:
    """How utterances become batches.

    `max_seconds`: longer utterances give a random crop of this length. `buckets` lengths are
    chosen to pad the least, unless `bucket_seconds` names them. A batch holds about
    `batch_seconds` of audio, in multiples of `row_multiple` rows (over all processes).
    `scan`: "decode" reads every file once at the start (finds all bad ones, knows checksums);
    "header" trusts headers and turns what later fails into empty rows, until more than
    `max_bad_share` of the files have failed. `cache` keeps decoded audio in memory. `sampling`:
    "stratified" spreads the classes evenly over the epoch, "balanced" repeats small classes;
    `label_share` is the labelled share of each epoch.
    """

    max_seconds: float = 20.0
    buckets: int = 6
    bucket_seconds: tuple[float, ...] | None = None
    batch_seconds: float = 60.0
    max_rows: int | None = None
    row_multiple: int = 1
    scan: Literal["decode", "header"] = "decode"
    cache: bool = False
    allow_silent: bool = False
    max_bad_share: float = 0.1
    unknown_labels: Literal["refuse", "unlabelled"] = "refuse"
    sampling: Literal["shuffle", "stratified", "balanced"] = "shuffle"
    label_share: float | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int = 0
    threads: int = 2

    def __post_init__(self):
        for name in ("max_seconds", "batch_seconds", "buckets", "row_multiple", "threads"):
            if not getattr(self, name) > 0:
                raise UserError(
                    f"<stage>.batches.{name} must be above 0, got {getattr(self, name)}"
                )
        if self.workers < 0:
            raise UserError(f"<stage>.batches.workers must not be negative, got {self.workers}")
        for name in ("max_bad_share", "label_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"<stage>.batches.{name} is a share from 0 to 1, got {value}")
        edges = self.bucket_seconds
        if edges is not None and (not edges or list(edges) != sorted(set(edges)) or edges[0] <= 0):
            raise UserError(
                f"<stage>.batches.bucket_seconds must be ascending lengths, got {edges}"
            )


class TrainingData:
    """Batches for training and for loss evaluation, the same for any number of workers.

    `labels` are the class names (None: everything is unlabelled). Of each global batch the process
    `process_index` of `process_count` gets its share of the rows. Attributes: `rows` (the usable
    utterances), `label` int32[rows], `bad`, `scans`, `plan`, `speakers`, `steps_per_epoch`,
    `fingerprint`. Raises `UserError` when too many files are bad, at the start or while batches are
    made, or a label is unknown.
    """

    def __init__(
        self,
        source: Source,
        labels: Sequence[str] | None,
        cfg: DataConfig,
        *,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if cfg.row_multiple % process_count:
            raise UserError(
                f"<stage>.batches.row_multiple {cfg.row_multiple} must be a multiple of the number "
                f"of processes, {process_count}"
            )
        self.cfg, self.seed = cfg, seed
        self._process, self._processes = process_index, process_count
        found = self._select(
            scan_source(
                source,
                decode=cfg.scan == "decode",
                cache=cfg.cache,
                allow_silent=cfg.allow_silent,
                max_bad_share=cfg.max_bad_share,
                threads=cfg.threads,
            )
        )
        self._source, self._kept = found.source, found.usable
        self.scans, self.bad = found.scans, found.bad
        self._given = len(source)
        self.rows: list[Utterance] = [self._source.utterances[i] for i in self._kept]
        self.classes = None if labels is None else list(labels)
        self.label = self._map_labels()
        self.speakers = sorted({row.speaker for row in self.rows if row.speaker is not None})
        codes = {speaker: i for i, speaker in enumerate(self.speakers)}
        self._speaker = [-1 if r.speaker is None else codes[r.speaker] for r in self.rows]
        longest = round(cfg.max_seconds * SAMPLE_RATE)
        self._samples = np.array([scan.samples for scan in self.scans])
        self._lengths = np.minimum(self._samples, longest)
        if cfg.bucket_seconds is None:
            edges = bucket_edges(self._lengths, cfg.buckets)
        else:
            edges = [round(seconds * SAMPLE_RATE) for seconds in cfg.bucket_seconds]
        enough = -(-len(self.rows) // cfg.row_multiple) * cfg.row_multiple
        rows = bucket_rows(
            edges,
            round(cfg.batch_seconds * SAMPLE_RATE),
            row_multiple=cfg.row_multiple,
            max_rows=min(cfg.max_rows or enough, enough),
        )
        self.plan = BatchPlan(self._lengths, edges, rows, seed=seed, **self._grouping())

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold (about) every row once."""
        return self.plan.steps_per_epoch

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, audio checksums and labels, in the order of the ids."""
        digest = hashlib.sha256()
        for row, scan, label in sorted(
            zip(self.rows, self.scans, self.label, strict=True), key=lambda item: item[0].id
        ):
            digest.update(f"{row.id}\t{scan.sha256 or scan.samples}\t{label}\n".encode())
        return digest.hexdigest()

    def trained_on(self) -> Iterator[dict[str, str | None]]:
        """Yields {id, audio_sha256} of every usable row (checksum None without decoding)."""
        for row, scan in zip(self.rows, self.scans, strict=True):
            yield {"id": row.id, "audio_sha256": scan.sha256 or None}

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Any]]:
        """Yields the batches from a step on, endlessly.

        Each is {audio float32[B, N], audio_samples int32[B], label int32[B] (-1 unlabelled),
        speaker int32[B] (-1 unknown), id list[str]}; empty rows have audio_samples 0 and id "".
        """
        return self._iterate(range(start_step, _FOREVER), self._training_batch)

    def check_bad(self, bad: Sequence[BadFile]) -> None:
        """Raises `UserError` with the list when `bad` are more than `max_bad_share` of all."""
        if len(bad) > self.cfg.max_bad_share * self._given:
            raise UserError(
                f"{len(bad)} of {self._given} files cannot be used, more than "
                f"<stage>.batches.max_bad_share {self.cfg.max_bad_share} allows; mend or remove "
                "them, or raise the share:\n"
                f"{listing(list(bad))}"
            )

    def evaluation_batches(self) -> Iterator[dict[str, Any]]:
        """Yields every row of every process's share once, first `max_seconds`, not augmented."""
        planned = evaluation_batches(self._lengths, self.plan.edges, self.plan.rows)
        return self._iterate(range(len(planned)), _Evaluation(self, planned))

    def _select(self, found: Scanned) -> Scanned:
        """What of the usable rows to take: all of them."""
        return found

    def _iterate(self, steps: range, make: Any) -> Iterator[dict[str, Any]]:
        batches = Prefetched(make, steps, workers=self.cfg.workers, threads=self.cfg.threads)
        known = {bad.id for bad in self.bad}
        try:
            for batch in batches:
                for bad in batch.pop("bad"):
                    if bad.id not in known:
                        known.add(bad.id)
                        self.bad.append(bad)
                self.check_bad(self.bad)
                yield batch
        finally:
            batches.close()

    def _training_batch(self, step: int) -> dict[str, Any]:
        planned = self.plan.batch(int(step))
        return self._assemble(planned.bucket, planned.rows, int(step))

    def _assemble(self, bucket: int, rows: np.ndarray, step: int | None) -> dict[str, Any]:
        """Loads this process's rows; `step` None means no random crop and no augmentation."""
        share = len(rows) // self._processes
        first = self._process * share
        limit, cfg = self.plan.edges[bucket], self.cfg.augment
        bad: list[BadFile] = []
        audio = []
        for place in range(first, first + share):
            if step is None:
                audio.append(self._load(int(rows[place]), limit, None, bad))
                continue
            # Every draw has its own key, so it does not matter which process makes which row.
            crop, mixing, other, change = (
                np.random.default_rng([self.seed, step, place, i]) for i in range(4)
            )
            piece = self._load(int(rows[place]), limit, crop, bad)
            if len(piece) and mixing.random() < cfg.mix_probability:
                partner = int(rows[mixing.integers(len(rows))])
                piece = mix_piece(piece, self._load(partner, limit, other, bad), cfg, mixing)
            if len(piece) and cfg.active:
                piece = augment(piece, cfg, change)[:limit]
            audio.append(piece)
        batch = np.zeros((share, limit), np.float32)
        for i, piece in enumerate(audio):
            batch[i, : len(piece)] = piece
        real = [int(r) if len(a) else -1 for r, a in zip(rows[first:], audio, strict=False)]
        return {
            "audio": batch,
            "audio_samples": np.array([len(piece) for piece in audio], np.int32),
            "label": np.array([self.label[r] if r >= 0 else -1 for r in real], np.int32),
            "speaker": np.array([self._speaker[r] if r >= 0 else -1 for r in real], np.int32),
            "id": [self.rows[r].id if r >= 0 else "" for r in real],
            "bad": bad,
        }

    def _load(self, row: int, limit: int, rng, bad: list[BadFile]) -> np.ndarray:
        """float32[<= limit]: the whole utterance, or a crop (random with a generator)."""
        if row < 0:
            return np.zeros(0, np.float32)
        spare = int(self._samples[row]) - min(limit, int(self._lengths[row]))
        start = 0 if rng is None or spare <= 0 else int(rng.integers(spare + 1))
        try:
            if spare > 0:
                return self._source.load_piece(self._kept[row], start, limit)[:limit]
            audio = self._source.load(self._kept[row])[0]
            if self.cfg.scan == "header" and not self.cfg.allow_silent:
                check_not_silent(float(audio.min()), float(audio.max()), self.rows[row].path)
            return audio[:limit]
        except BadAudio as error:
            bad.append(BadFile.of(self.rows[row], error))
            return np.zeros(0, np.float32)

    def _map_labels(self) -> np.ndarray:
        if self.classes is None:
            return np.full(len(self.rows), -1, np.int32)
        indices = map_labels(
            [row.label for row in self.rows],
            self.classes,
            corpora=[row.corpus for row in self.rows],
            ignore_unknown=self.cfg.unknown_labels == "unlabelled",
        )
        return np.array(indices, np.int32)

    def _grouping(self) -> dict[str, np.ndarray]:
        """Groups and shares for the plan: group 0 is unlabelled, group c + 1 is class c."""
        cfg = self.cfg
        if cfg.sampling == "shuffle" and cfg.label_share is None:
            return {}
        groups = self.label + 1
        counts = np.bincount(groups, minlength=1 + len(self.classes or [])).astype(np.float64)
        if cfg.sampling != "balanced" and cfg.label_share is None:
            return {"groups": groups}
        labelled = counts[1:] / max(counts[1:].sum(), 1)
        if cfg.sampling == "balanced":
            labelled = (counts[1:] > 0) / max((counts[1:] > 0).sum(), 1)
        share = cfg.label_share
        if share is None:
            share = counts[1:].sum() / counts.sum()
        return {"groups": groups, "shares": np.concatenate([[1 - share], share * labelled])}


class _Evaluation:
    """Picklable map from a place in the evaluation plan to its batch."""

    def __init__(self, data: TrainingData, planned: list):
        self._data, self._planned = data, planned

    def __call__(self, place: int) -> dict[str, Any]:
        planned = self._planned[int(place)]
        return self._data._assemble(planned.bucket, planned.rows, None)
