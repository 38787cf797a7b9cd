"""The run: one frozen dataclass composed of each part's own config, loaded from a Python file.

A config file defines `get_config()` and returns a `RunConfig`. Stages run in the order of their
fields; each starts from the encoder that the one before it left.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from c2ser_jax.data.audio import SAMPLE_RATE
from c2ser_jax.data.cot_data import AnswerConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.spoken_scenes import SpokenScenesConfig
from c2ser_jax.data.synthetic import SyntheticConfig
from c2ser_jax.errors import UserError
from c2ser_jax.models.c2ser import C2serConfig, Inputs
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.models.frontend_init import FrontEndConfig
from c2ser_jax.models.qwen2_config import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.overrides import apply_overrides
from c2ser_jax.parallel.mesh import MeshConfig
from c2ser_jax.tasks.classify import ClassifyConfig
from c2ser_jax.tasks.cot import CotConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.tasks.probe import ProbeConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

CorpusName = Literal[
    "synthetic", "spoken_scenes", "manifest", "emodb", "ravdess", "cremad", "urdu", "turevdb",
    "savee", "tfds_crema_d", "tfds_savee",
]  # fmt: skip
EMBEDDED = ("synthetic", "spoken_scenes")
StageName = Literal["pretrain", "classify", "explicit", "implicit", "probe"]
STAGES: tuple[StageName, ...] = ("pretrain", "classify", "explicit", "implicit", "probe")
"""In the order in which they run."""
ANSWERING: tuple[StageName, ...] = ("explicit", "implicit")


@dataclass(frozen=True)
class CorpusConfig:
    """Which utterances a run sees and how they are divided into training, development and test."""

    corpus: CorpusName = "synthetic"
    """A corpus that has a preparer, any `manifest`, or the embedded speech: `synthetic`, or
    `spoken_scenes`, whose labels take both words and voice."""
    root: str = ""
    """Folder of the corpus, or the folder that relative paths of the manifest start from."""
    manifest: str = ""
    """For `manifest`: the list of utterances."""
    protocol: Literal["speakers", "loso", "lists", "all"] = "speakers"
    """`speakers`: one speaker-disjoint split; `loso`: leave one out; `lists`: EmoBox's folds;
    `all`: everything is training data, so nothing is scored."""
    lists: str = ""
    """For `lists`: the folder with fold_1, fold_2, … of EmoBox."""
    folds: tuple[str, ...] = ()
    """Names of the folds to run; empty runs all."""
    labels: tuple[str, ...] = ()
    """Label set in class order; empty takes the corpus's labels in alphabetical order."""
    test_share: float = 0.25
    """For `speakers`: share of the speakers held out for the test."""
    test_speakers: tuple[str, ...] = ()
    """For `speakers`: those held out, by name, whatever the seed; empty: `test_share` of them."""
    development: bool = True
    """Keep development utterances (another training speaker's) out of training, in runs with a
    stage that uses them: the probe, or one with `<stage>.loop.evaluate_every`."""
    scan: Literal["decode", "header"] = "decode"
    """`decode` reads every file at the start and finds all bad ones; `header` trusts headers."""
    cache: bool = False
    """Keep all audio decoded in memory (64 kB a second): for small corpora."""
    allow_silent: bool = False
    max_bad_share: float = 0.1
    """The run stops with the list when more than this share of the files cannot be used."""
    cot_texts: str = ""
    """jsonl with the answers of chain of thought, as `python -m c2ser_jax.data.cot_text` writes it;
    empty: they are made from audio, transcript and label, with style words cut at bounds of the
    fold's training part (by one process: write those of a large corpus before)."""
    allow_leakage: bool = False
    """Score test data even when the `initial` model was trained on some of them."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    spoken_scenes: SpokenScenesConfig = field(default_factory=SpokenScenesConfig)

    def __post_init__(self):
        if self.corpus == "manifest" and not self.manifest:
            raise UserError("data.corpus is 'manifest' but data.manifest names no file; set it")
        if self.corpus not in EMBEDDED and self.protocol == "lists" and not self.lists:
            raise UserError("data.protocol is 'lists' but data.lists names no folder; set it")
        if self.test_speakers and self.protocol != "speakers":
            raise UserError(
                f"data.test_speakers belongs to data.protocol speakers, not to {self.protocol}; "
                "drop one of them"
            )
        if not 0.0 < self.test_share < 1.0:
            raise UserError(f"data.test_share is {self.test_share}; it must lie between 0 and 1")


@dataclass(frozen=True)
class PretrainStage:
    """Emotion2Vec-S pretraining: frame, utterance and category losses."""

    task: PretrainConfig = field(default_factory=PretrainConfig)
    batches: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(ema_decay=0.999))

    def __post_init__(self):
        if not self.loop.ema_decay:
            raise UserError(
                "pretraining needs a teacher: set pretrain.loop.ema_decay, say to 0.999"
            )
        _check_warmup("pretrain", self.optimizer, self.loop)


@dataclass(frozen=True)
class ClassifyStage:
    """Supervised fine-tuning of the encoder with a linear head, as emotion2vec+."""

    task: ClassifyConfig = field(default_factory=ClassifyConfig)
    batches: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        _check_warmup("classify", self.optimizer, self.loop)


@dataclass(frozen=True)
class C2serModelConfig:
    """The whole model beside its acoustic encoder, which is the run's `encoder`."""

    encoder: WhisperEncoderConfig = field(default_factory=WhisperEncoderConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    llm: Qwen2Config = field(default_factory=Qwen2Config)
    acoustic_tokens: Literal["model", "published"] = "model"
    acoustic_token_count: int = 10
    inputs: Inputs = "both"

    def model(self, acoustic: Emotion2VecConfig) -> C2serConfig:
        """The model's own config. Raises `UserError` for parts that don't fit each other."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return C2serConfig(acoustic=acoustic, **parts)


@dataclass(frozen=True)
class CotStage:
    """Chain of thought: `explicit` learns answers with their reasoning, `implicit` drops it."""

    task: CotConfig = field(default_factory=CotConfig)
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    batches: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def check(self, name: str) -> None:
        """Raises `UserError` when the stage of this name cannot run as configured."""
        _check_warmup(name, self.optimizer, self.loop)
        if self.loop.trainable != LoopConfig().trainable:
            raise UserError(
                f"{name}.loop.trainable is {self.loop.trainable!r}: in a chain-of-thought stage "
                f"{name}.task.trainable names what is trained; leave loop.trainable out"
            )
        augment = self.batches.augment
        if augment.speed_probability or augment.mix_probability or augment.gain_db:
            raise UserError(
                f"{name}.batches.augment changes speed, loudness or words of the audio, which the "
                "answers of a chain-of-thought stage name; only noise may be added there"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result; stored as config.json in the work directory."""

    name: str = "run"
    seed: int = 0
    initial: str = ""
    """Model directory that the first stage starts from, empty: from nothing. A whole C2SER model
    gives all its parts, another one the acoustic encoder."""
    initial_encoder: str = ""
    """Model directory of a Whisper, whose encoder `explicit` starts from."""
    initial_llm: str = ""
    """Model directory of a Qwen2 that `explicit` starts from."""
    tokenizer: str = ""
    """Folder of the language model's tokenizer; empty: that of `initial_llm` or `initial`, else one
    is trained on the texts."""
    stages: tuple[StageName, ...] = ()
    """Stages to run, of those that the file configures; empty runs them all."""
    encoder: Emotion2VecConfig = field(default_factory=Emotion2VecConfig)
    front_end: FrontEndConfig | None = None
    """How the waveform stem starts where there is no `initial` model: as a filterbank fitted on the
    fold's training audio; None: as drawn."""
    data: CorpusConfig = field(default_factory=CorpusConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    pretrain: PretrainStage | None = None
    classify: ClassifyStage | None = None
    c2ser: C2serModelConfig | None = None
    """The whole model of the stages `explicit` and `implicit`."""
    explicit: CotStage | None = None
    implicit: CotStage | None = None
    score_answers: bool = True
    """Ask what `explicit` and `implicit` leave about the test utterances, in every way."""
    probe: ProbeConfig | None = None

    def __post_init__(self):
        missing = [stage for stage in self.stages if getattr(self, stage) is None]
        if missing:
            raise UserError(
                f"stages asks for {', '.join(missing)}, which this config file does not configure; "
                f"it has {', '.join(self.configured_stages()) or 'no stage'}"
            )
        if self.data.protocol == "all" and "probe" in self.configured_stages():
            raise UserError(
                "data.protocol is 'all', which leaves nothing to probe on; choose speakers, loso "
                "or lists, or leave the probe out of stages"
            )

        asking = self._evaluating()
        if asking and (self.data.protocol == "all" or not self.data.development):
            raise UserError(
                f"{asking[0]}.loop.evaluate_every asks for losses on development data, and this "
                "run keeps none; set data.development True with another data.protocol than all, or "
                f"{' and '.join(f'{name}.loop.evaluate_every' for name in asking)} None"
            )
        self._check_answering()

    def _check_answering(self):
        """Raises `UserError` when the chain-of-thought stages cannot run as configured."""
        for name in ANSWERING:
            if (stage := getattr(self, name)) is not None:
                stage.check(name)
        stages = self.configured_stages()
        for name in (n for n in ANSWERING if n in stages):
            if self.c2ser is None:
                raise UserError(f"the stage {name} needs a model: give c2ser, its parts' configs")
            longest = self.c2ser.model(self.encoder).max_samples / SAMPLE_RATE
            stage = getattr(self, name)
            if stage.batches.max_seconds > longest:
                raise UserError(
                    f"{name}.batches.max_seconds is {stage.batches.max_seconds}, the speech "
                    f"encoder hears {longest:g} s at most; lower it, or raise "
                    "c2ser.encoder.positions"
                )
        if "explicit" in stages and self.explicit and self.explicit.task.distillation_weight:
            raise UserError(
                "explicit.task.distillation_weight is for the stage implicit, whose teacher is the "
                "model that explicit leaves; set it to 0"
            )
        if "implicit" in stages and "explicit" not in stages and not self.initial:
            assert self.implicit is not None
            if "explicit" in self.implicit.answers.modes:
                raise UserError(
                    "the stage implicit starts from what explicit left: configure explicit, give "
                    "--initial DIR of its model, or set "
                    "implicit.answers.explicit_share_start and implicit.answers.explicit_share_end "
                    "to 0"
                )

    @property
    def uses_development(self) -> bool:
        """Whether a stage looks at development data; without one they are training data."""
        return "probe" in self.configured_stages() or bool(self._evaluating())

    def _evaluating(self) -> list[StageName]:
        """The stages that look at development data while they train."""
        return [
            name
            for name in self.configured_stages()
            if name != "probe" and getattr(self, name).loop.evaluate_every
        ]

    @property
    def needs_labels(self) -> bool:
        """Whether a stage learns from labels, or is scored with them."""
        stages = self.configured_stages()
        contrasts = self.pretrain is not None and self.pretrain.task.category_weight > 0
        return bool({"classify", "probe", *ANSWERING} & set(stages)) or (
            "pretrain" in stages and contrasts
        )

    def configured_stages(self) -> tuple[StageName, ...]:
        """Names of the stages that this run executes, in order."""
        wanted = self.stages or STAGES
        return tuple(s for s in STAGES if s in wanted and getattr(self, s) is not None)


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The `RunConfig` of a config file (with or without .py) with command-line overrides applied.

    Config files are the user's own code and are imported; checkpoints and data never are.

    Raises:
      UserError: no such file, no `get_config`, or an override that does not fit.
    """
    config = import_config(path)
    if not isinstance(config, RunConfig):
        raise UserError(f"get_config() of {path} returned {type(config).__name__}, not a RunConfig")
    return apply_overrides(config, overrides)


def _check_warmup(stage: str, optimizer: OptimizerConfig, loop: LoopConfig) -> None:
    if optimizer.warmup_steps > loop.steps:
        raise UserError(
            f"{stage}.optimizer.warmup_steps is {optimizer.warmup_steps} but {stage}.loop.steps is "
            f"{loop.steps}; the warm-up must end within the run"
        )


def import_config(path: str | Path) -> Any:
    """What the `get_config()` of a config file (with or without .py) returns.

    Raises:
      UserError: no such file, or it defines no `get_config`.
    """
    path = Path(path)
    file = path if path.suffix == ".py" else path.with_suffix(".py")
    if not file.is_file():
        raise UserError(f"there is no config file {file}; configs/ holds examples")
    spec = importlib.util.spec_from_file_location(f"c2ser_jax_config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} defines no get_config(); it must return a config")
    return module.get_config()
