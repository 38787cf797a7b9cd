"""The one training loop: any task, any mesh, exact resume.

Position = step: the data stream, masks and dropout derive from (seed, step), so a run that is
resumed from a checkpoint goes on bit by bit as if it had never stopped.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from c2ser_jax.errors import UserError
from c2ser_jax.parallel.distributed import any_process, is_main_process, to_global
from c2ser_jax.parallel.rules import RULES, batch_parts, replicated
from c2ser_jax.tasks.task import Task
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.checkpoint import TrainingCheckpoints
from c2ser_jax.training.log import MetricsWriter
from c2ser_jax.training.preemption import StopSignal
from c2ser_jax.training.program import Programs
from c2ser_jax.training.resume import check_same_run, run_record
from c2ser_jax.training.state import TrainState, compile_pattern, create_state, state_shapes
from c2ser_jax.training.step import annealed_decay, make_train_step
from c2ser_jax.training.window import Window


class Dataset(Protocol):
    """Where batches come from; a pure function of seed and step."""

    @property
    def fingerprint(self) -> str:
        """Changes with the utterances, their audio or their labels."""
        ...

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Yields this process's rows of the batches start_step, start_step + 1, …"""
        ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long and how a run trains; `trainable` and what ends in `_paths` are path patterns."""

    steps: int = 1000
    microbatches: int = 1
    log_every: int = 50
    save_every: int = 500
    keep_last: int = 2
    keep_every: int | None = None
    evaluate_every: int | None = None  # log the losses on development data, too
    trainable: str = ".*"
    frozen_dtype: Literal["float32", "bfloat16"] | None = None  # None: as the model has them
    frozen_dtype_paths: str | None = None  # None: all that is frozen
    ema_decay: float = 0.0  # 0: no average
    ema_end_decay: float | None = None  # None: constant
    ema_anneal_steps: int = 0
    ema_paths: str | None = None  # None: what the task names, else all parameters
    progress: bool | None = None  # None: a bar when stderr is a terminal
    tensorboard: bool = False

    def __post_init__(self):
        for name in ("steps", "microbatches", "log_every", "save_every", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a number of at least 1")
        for decay in (self.ema_decay, self.ema_end_decay or 0.0):
            if not 0 <= decay <= 1:
                raise UserError(f"an ema decay is {decay}: give a number from 0 to 1")
        for pattern in (self.trainable, self.ema_paths or "", self.frozen_dtype_paths or ""):
            compile_pattern(pattern)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training leaves: the state, the rows of metrics.jsonl, and why it ended."""

    state: TrainState
    history: list[dict[str, Any]]
    stopped_by_signal: bool


def fit(
    task: Task,
    dataset: Dataset,
    *,
    cfg: LoopConfig,
    optimizer_cfg: optimizers.OptimizerConfig,
    mesh: Mesh,
    seed: int,
    workdir: Path,
    init_params: Mapping[str, Any] | None = None,
    description: Mapping[str, Any] | None = None,
    evaluate: Callable[[TrainState, int], Mapping[str, float]] | None = None,
    stop: StopSignal | None = None,
) -> FitResult:
    """Trains `task` for `cfg.steps` steps, from the newest checkpoint in `workdir` if there is one.

    `description` (JSON: config, labels, data fingerprint) is stored with each checkpoint, and a
    checkpoint of another run is refused. `evaluate(state, step)` returns numbers to log. `stop` is
    the caller's own, entered; None: SIGTERM is noted while this function runs.
    Errors: UserError for a checkpoint of another run, a batch that does not fit the mesh, a full
    disk, and a loss or gradient that is not finite (named with the step and the batch's ids; the
    state before that step is saved).
    """
    workdir = Path(workdir)
    record = run_record(
        description or {},
        loop=cfg,
        optimizer=optimizer_cfg,
        seed=seed,
        fingerprint=dataset.fingerprint,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(nn.logical_axis_rules(RULES))
        if stop is None:
            stop = stack.enter_context(StopSignal())
        checkpoints = TrainingCheckpoints(
            workdir / "checkpoints", keep_last=cfg.keep_last, keep_every=cfg.keep_every
        )
        stack.callback(checkpoints.close)
        start = checkpoints.latest()
        if start is not None:
            check_same_run(checkpoints.read_meta(start), record, workdir, start)
        log = MetricsWriter(
            workdir,
            start_step=start or 0,
            total_steps=cfg.steps,
            progress=cfg.progress,
            tensorboard=cfg.tensorboard,
            active=is_main_process(),
        )
        stack.callback(log.close)
        stream = dataset.batches(start or 0)
        stack.callback(getattr(stream, "close", lambda: None))
        run = _Run(task, cfg, optimizer_cfg, mesh, record, checkpoints, log, stop, evaluate)
        return run.train(stream, start, seed, init_params)


class _Run:
    """The moving parts of one call of `fit`."""

    def __init__(
        self, task, cfg, optimizer_cfg, mesh, record, checkpoints, log, stop, evaluate
    ) -> None:
        self.task, self.cfg, self.mesh, self.record = task, cfg, mesh, record
        self.checkpoints, self.log, self.stop, self.evaluate = checkpoints, log, stop, evaluate
        self.optimizer = optimizers.build(optimizer_cfg, cfg.steps)
        self.schedule = optimizers.learning_rate_schedule(optimizer_cfg, cfg.steps)
        self.window = Window()
        self.saved: int | None = None

    def train(self, stream: Any, start: int | None, seed: int, init_params: Any) -> FitResult:
        """Runs from step `start` (None: a fresh state) to the last step or to a signal."""
        cfg = self.cfg
        batch: Any
        batch, ids = self._next_batch(stream)
        state, run_key = self._first_state(batch, start, seed, init_params)
        self.saved = start
        step_program = jitted_step(self.task, cfg, self.optimizer, self.schedule, state, self.mesh)
        programs = Programs(step_program, self.log.say)
        go_on, halt = any_process(self.mesh, False), any_process(self.mesh, True)
        healthy = jax.jit(lambda: jnp.bool_(True), out_shardings=replicated(self.mesh))()
        unsettled: Any = None
        step, stopped = start or 0, False
        if start is not None and self._evaluation_is_due(start):
            self._evaluate(start, state)  # a kill may have come between saving and evaluating
        self.window.restart()
        while step < cfg.steps and not stopped:
            if batch is None:
                batch, ids = self._next_batch(stream)
            vote = halt if self.stop.requested else go_on
            state, healthy, report = programs(state, healthy, batch, vote, run_key)
            batch = None
            if unsettled is not None:
                # The step before: while it is looked at, the device already works on this one.
                stopped = self._settle(unsettled, state)
            unsettled = (step, ids, healthy, report)
            step += 1
            self.log.advance()
            if jax.process_count() == 1:
                stopped = self.stop.requested
            ends = step == cfg.steps or stopped
            if ends or any(n and step % n == 0 for n in self._intervals()):
                stopped |= self._settle(unsettled, state)
                unsettled = None
                self._boundary(step, state, programs.seconds, ends or stopped)
        self.checkpoints.wait()
        if not stopped:
            self._evaluate(step, state)
        else:
            self.log.say(f"stopped by a signal; step {step} is saved, the same command goes on")
        return FitResult(state, self.log.history, stopped)

    def _next_batch(self, stream: Any) -> tuple[dict[str, jax.Array], list[str]]:
        try:
            rows, ids = split_batch(next(stream))
        except StopIteration:
            raise UserError("the data ended before the last step: give fewer steps") from None
        batch = to_global(rows, self.mesh)
        check_rows(batch, self.mesh, self.cfg.microbatches)
        return batch, ids

    def _intervals(self) -> tuple[int | None, ...]:
        return self.cfg.log_every, self.cfg.save_every, self.cfg.evaluate_every

    def _first_state(self, batch: Any, start: Any, seed: int, init_params: Any) -> Any:
        structs = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in batch.items()}
        shapes = planned_state(self.task, self.cfg, self.optimizer, structs, self.mesh)
        init_key, run_key = jax.jit(
            lambda: (jax.random.key(seed), jax.random.fold_in(jax.random.key(seed), 1)),
            out_shardings=replicated(self.mesh),
        )()
        if start is not None:
            self.log.say(f"resumes from step {start}")
            return self.checkpoints.restore(start, shapes), run_key
        state = create_state(
            self.task, self.optimizer, structs, shapes, key=init_key, init_params=init_params
        )
        return state, run_key

    def _settle(self, unsettled: Any, state: TrainState) -> bool:
        """Looks at one finished step: keeps its report, stops on NaN, returns the vote to stop."""
        step, ids, healthy, report = unsettled
        if not bool(healthy):
            self._save(step, state)
            self.checkpoints.wait()
            raise UserError(not_finite(step, ids, jax.device_get(report), self.checkpoints))
        self.window.add(report)
        return bool(report["stop"])

    def _boundary(self, step: int, state: TrainState, compile_seconds: float, ends: bool) -> None:
        cfg = self.cfg
        if ends or step % cfg.log_every == 0:
            self.log.write("train", step, self.window.row(compile_seconds))
        if ends or step % cfg.save_every == 0:
            self._save(step, state)
        if not ends and self._evaluation_is_due(step):
            self._evaluate(step, state)

    def _evaluation_is_due(self, step: int) -> bool:
        every = self.cfg.evaluate_every
        return every is not None and step % every == 0 and step < self.cfg.steps

    def _evaluate(self, step: int, state: TrainState) -> None:
        if self.evaluate is None:
            return
        begun = time.perf_counter()
        self.log.write("evaluate", step, self.evaluate(state, step))
        self.window.pause(time.perf_counter() - begun)

    def _save(self, step: int, state: TrainState) -> None:
        if self.saved != step:
            self.checkpoints.save(step, state, self.record)
            self.saved = step


def planned_state(
    task: Task,
    cfg: LoopConfig,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> TrainState:
    """The state that a loop trains, as ShapeDtypeStructs with shardings. Errors: UserError."""
    return state_shapes(
        task,
        optimizer,
        batch,
        mesh=mesh,
        trainable=cfg.trainable,
        ema=_averaged_paths(task, cfg),
        frozen_dtype=cfg.frozen_dtype,
        frozen_dtype_paths=cfg.frozen_dtype_paths,
    )


def jitted_step(
    task: Task,
    cfg: LoopConfig,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    state: TrainState,
    mesh: Mesh,
) -> Any:
    """The step of a loop, jitted, for a `state` of arrays or their shapes, which is donated."""
    end = cfg.ema_decay if cfg.ema_end_decay is None else cfg.ema_end_decay
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
    return _step_program(
        task,
        optimizer,
        schedule,
        cfg.microbatches,
        (cfg.ema_decay, end, cfg.ema_anneal_steps),
        tuple(leaves),
        tree,
        mesh,
    )


@functools.lru_cache(maxsize=4)  # the stages of one fold, which every fold goes through
def _step_program(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    microbatches: int,
    decay: tuple[float, float, int],
    places: tuple[Any, ...],
    tree: Any,
    mesh: Mesh,
) -> Any:
    """The jitted step, kept, so that a fold takes the program of the fold before it."""
    step = make_train_step(
        task,
        optimizer,
        learning_rate=schedule,
        microbatches=microbatches,
        ema_decay=annealed_decay(*decay),
    )
    whole = replicated(mesh)
    out = (jax.tree.unflatten(tree, places), whole, whole)
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def _averaged_paths(task: Task, cfg: LoopConfig) -> str | None:
    """Returns the pattern of what is averaged, None without; a teacher needs a decay."""
    wanted = cfg.ema_decay > 0 or bool(cfg.ema_end_decay)
    if task.ema_paths is not None and not wanted:
        raise UserError(
            f"the task {task.name} learns from a moving average of its parameters, and ema_decay "
            "is 0: give ema_decay, such as 0.999"
        )
    return (cfg.ema_paths or task.ema_paths or ".*") if wanted else None


def check_rows(batch: Mapping[str, jax.Array], mesh: Mesh, microbatches: int) -> None:
    """Errors: UserError when the global rows cannot be cut evenly over devices and microbatches."""
    rows, parts = next(iter(batch.values())).shape[0], batch_parts(mesh)
    if rows % (parts * microbatches):
        raise UserError(
            f"a batch of {rows} rows cannot be cut into {microbatches} microbatches over {parts} "
            f"device groups (mesh data × fsdp): make its rows a multiple of {parts * microbatches} "
            "(<stage>.batches.row_multiple)"
        )


def split_batch(batch: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (numeric arrays, ids); texts and other columns stay on the host and are dropped."""
    ids = [str(one) for one in batch.get("id", [])]
    arrays = {
        name: value
        for name, value in batch.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim
    }
    return arrays, ids


def not_finite(step: int, ids: list[str], report: Any, checkpoints: TrainingCheckpoints) -> str:
    """Returns the sentence for a loss or gradient that is not finite at `step`."""
    bad = [n for n, (total, _) in report["terms"].items() if not np.isfinite(total)]
    what = f"the terms {bad} are" if bad else "the gradients are"
    return (
        f"step {step}: {what} not finite (loss {float(report['loss']):.4g}, gradient norm "
        f"{float(report['gradient_norm']):.4g}) for the batch {ids}; the state before it is saved "
        f"in {checkpoints.directory / str(step)}: look at these files, lower the learning "
        "rate, or clip the gradients (clip_norm)"
    )
