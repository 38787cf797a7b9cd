"""C2SER beside transformers' PyTorch: prefill, LoRA step, decoding, label scoring.

`python benchmarks/c2ser.py` runs Whisper-small and a Qwen2 of 0.5 B shape in float32 on the CPU;
`--gpu` the published sizes (Whisper-medium, Qwen2-7B) in bfloat16. Both sides run in this process,
one after the other, with the same random language model; Emotion2Vec-S, which the peer lacks, is
left out on both sides: acoustic tokens are given. Ratios above 1 mean that ours is faster.

Shapes: B clips of 10 s, M mel frames, P prompt tokens, S positions before the answer, L answer
tokens, J labels, V vocabulary, D width.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the memory

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.matmul_rate import best_seconds, measure_matmul_rate  # noqa: E402
from benchmarks.pretrain import PEAK_BF16_FLOPS  # noqa: E402
from c2ser_jax.decoding.generate import DecodingConfig, generate  # noqa: E402
from c2ser_jax.decoding.labels import pack_labels, score_labels  # noqa: E402
from c2ser_jax.huge_pages import use_huge_pages  # noqa: E402
from c2ser_jax.models.attention import IMPLEMENTATIONS, Implementation  # noqa: E402
from c2ser_jax.models.c2ser import C2ser, C2serConfig  # noqa: E402
from c2ser_jax.models.connector import ConnectorConfig  # noqa: E402
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig  # noqa: E402
from c2ser_jax.models.lora import LoraConfig  # noqa: E402
from c2ser_jax.models.qwen2 import Qwen2, Qwen2Config  # noqa: E402
from c2ser_jax.models.whisper import WhisperEncoderConfig  # noqa: E402
from c2ser_jax.parallel.mesh import make_local_mesh  # noqa: E402
from c2ser_jax.parallel.rules import RULES, unbox  # noqa: E402
from c2ser_jax.tasks.cot import ChainOfThought, CotConfig  # noqa: E402
from c2ser_jax.training.optimizer import (  # noqa: E402
    OptimizerConfig,
    build,
    learning_rate_schedule,
)
from c2ser_jax.training.state import create_state, state_shapes  # noqa: E402
from c2ser_jax.training.step import make_train_step  # noqa: E402

MEL_FRAMES, PROMPT, ANSWER, LABELS, LABEL_TOKENS = 1000, 20, 60, 7, 6
HEARD = 10 + MEL_FRAMES // 8 + 2  # acoustic tokens, down-sampled frames, the two marks
POSITIONS = PROMPT + HEARD
SHORT, LONG = 8, 40  # new tokens of the two runs whose difference is the time of decoding
QWEN2_05B = dict(
    vocabulary=151936, width=896, depth=24, heads=14, key_value_heads=2, mlp_width=4864,
    tied_head=True, max_positions=32768,
)  # fmt: skip
TINY = dict(
    vocabulary=640, width=64, depth=2, heads=4, key_value_heads=2, mlp_width=96, tied_head=False,
    max_positions=4096,
)  # fmt: skip


def model_config(size: str, gpu: bool, attention: Implementation, remat: bool) -> C2serConfig:
    """The model of `size` "tiny", "small" (CPU) or "published"; no dropout, so that sides agree."""
    dtype = "bfloat16" if gpu else "float32"
    whisper = {"tiny": "tiny", "small": "small", "published": "medium"}[size]
    llm = {"tiny": TINY, "small": QWEN2_05B, "published": {}}[size]
    encoder = WhisperEncoderConfig.named(whisper, dtype=dtype, attention_implementation=attention)
    language_model = Qwen2Config(
        **llm, lora=LoraConfig(dropout=0.0), dtype=dtype, param_dtype=dtype, remat=remat
    )
    return C2serConfig(
        acoustic=Emotion2VecConfig(  # next to nothing: the peer has none
            width=64, depth=1, prenet_depth=1, heads=2, extra_tokens=10, position_depth=1,
            position_groups=1, position_width=9, conv_layers=(ConvLayer(16, 640, 640),),
        ),
        encoder=encoder,
        connector=ConnectorConfig(
            encoder_width=encoder.width, width=encoder.width, output_width=language_model.width,
            position_dropout=0.0, dropout=0.0, activation_dropout=0.0, dtype=dtype,
        ),
        llm=language_model,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measures what `--parts` names and prints a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="published sizes in bfloat16")
    parser.add_argument("--size", choices=("tiny", "small", "published"), help="another size")
    parser.add_argument(
        "--parts", nargs="+", default=["prefill", "decode", "labels", "step"],
        choices=("prefill", "decode", "labels", "step", "agreement"),
    )  # fmt: skip
    parser.add_argument("--rows", type=int, nargs=2, default=(1, 16), help="batches of decoding")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step-rows", type=int, default=3, help="clips of the LoRA step")
    parser.add_argument("--attention", choices=IMPLEMENTATIONS, default="xla")
    parser.add_argument("--unrolled", action="store_true", help="no scan over the step's blocks")
    parser.add_argument("--remat", action="store_true", help="recompute the blocks of the step")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's, on the CPU")
    arguments = parser.parse_args(argv)
    device = jax.devices()[0]
    if arguments.gpu and device.platform == "cpu":
        raise SystemExit("--gpu was given, but jax sees no accelerator here")
    import torch

    torch.set_num_threads(arguments.threads)
    cfg = model_config(
        arguments.size or ("published" if arguments.gpu else "small"),
        arguments.gpu,
        arguments.attention,
        arguments.remat,
    )
    if arguments.unrolled:
        cfg = dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, scan_layers=False))
    bench = Bench(cfg, arguments.gpu, arguments.repeats)
    print(
        f"device         {device.device_kind}, {cfg.llm.dtype}, jax {jax.__version__}, "
        f"torch {torch.__version__}, {os.environ.get('GLIBC_TUNABLES', 'small pages')}"
    )
    if "prefill" in arguments.parts:
        bench.prefill()
    if "decode" in arguments.parts:
        for rows in arguments.rows:
            bench.decode(rows)
    if "labels" in arguments.parts:
        bench.labels()
    if "agreement" in arguments.parts:
        bench.agreement()
    if "step" in arguments.parts:
        bench.step(arguments.step_rows)
    return 0


class Bench:
    """Both sides; ours has the weights of the peer's language model, shared where it can."""

    def __init__(self, cfg: C2serConfig, gpu: bool, repeats: int):
        import torch

        from benchmarks.peer_transformers import Peer, language_model_tree

        self.cfg, self.gpu, self.repeats = cfg, gpu, repeats
        self.peer = Peer(
            cfg, MEL_FRAMES, "cuda" if gpu else "cpu", torch.bfloat16 if gpu else torch.float32
        )
        llm = dataclasses.replace(cfg.llm, lora=None, scan_layers=False)
        self.llm = Qwen2(llm)
        self.module = C2ser(dataclasses.replace(cfg, llm=llm))
        self.params = {
            **speech_params(cfg),
            "llm": language_model_tree(self.peer, share if gpu else copy),
        }
        self.rate = measure_matmul_rate(dtype=cfg.llm.dtype, rows=4096 if gpu else 1024)

    def prefill(self) -> None:
        """From log-mel features and a prompt to the first answer token's logits, one clip."""
        inputs = self._inputs(1)
        ours = self._seconds(self._prefill, self.params, *inputs)
        there = [self.peer.tensor(x) for x in inputs]
        theirs = self.peer.seconds(lambda: self.peer.prefill(*there), self.repeats)
        flops = sum(
            (
                encoder_flops(self.cfg, 1),
                connector_flops(self.cfg, 1),
                llm_flops(self.cfg, 1, POSITIONS, 1),
            )
        )
        self._tell("prefill", ours, theirs, flops)

    def decode(self, rows: int) -> None:
        """Greedy decoding alone: the time of LONG new tokens less that of SHORT."""
        embeddings = self._embeddings(rows)

        def ours(tokens: int) -> float:
            run = self._generate(DecodingConfig("greedy", tokens, tokens, 1, 1.0, eos=(1,), pad=0))
            return self._seconds(run, self.params["llm"], embeddings)

        there = self.peer.tensor(np.asarray(embeddings, np.float32))

        def theirs(tokens: int) -> float:
            return self.peer.seconds(lambda: self.peer.generate(there, tokens), self.repeats)

        per_token = (ours(LONG) - ours(SHORT)) / (LONG - SHORT)
        peer = (theirs(LONG) - theirs(SHORT)) / (LONG - SHORT)
        print(
            f"decode, {rows:>2} clips  {rows / per_token:9.1f} tokens/s, transformers "
            f"{rows / peer:9.1f}, ratio {peer / per_token:.2f}"
        )
        read = weight_bytes(self.params["llm"], self.cfg.llm.tied_head)
        bandwidth = copy_bandwidth(self.gpu)
        print(
            f"  weights read at {read / per_token / 1e9:.0f} GB/s, "
            f"{read / per_token / bandwidth:.0%} of a plain read's {bandwidth / 1e9:.0f} GB/s"
        )

    def labels(self) -> None:
        """Scores of seven labels of six tokens against sixty tokens of a search with four beams."""
        embeddings = self._embeddings(1)
        llm, ids = self.params["llm"], np.random.default_rng(1)
        tokens, counted = pack_labels(ids.integers(2, 600, (LABELS, LABEL_TOKENS)).tolist())

        def score(params, embeddings):
            mask = jnp.ones(embeddings.shape[:2], bool)
            return score_labels(self.llm, params, embeddings, mask, tokens, counted)

        def start(params, embeddings):
            return self.llm.apply({"params": params}, embeddings=embeddings, logits="last").logits

        beams = self._generate(DecodingConfig("beam", 60, 60, 4, 1.05, eos=(1,), pad=0))
        scored, searched, prefilled = (
            self._seconds(jax.jit(run), llm, embeddings) for run in (score, beams, start)
        )
        after = (searched - prefilled) / max(scored - prefilled, 1e-9)
        print(
            f"labels         {scored:.4f} s a clip, four beams of 60 tokens {searched:.4f} s: "
            f"{searched / scored:.1f} times, {after:.1f} times after the prefill"
        )

    def step(self, rows: int) -> None:
        """One training step of connector and adapters, 60 answer tokens a clip."""
        ours, memory = lora_step_seconds(self.cfg, rows, self.repeats)
        optimizer = self.peer.train()
        mel, tokens, prompt = self._inputs(rows)
        there = [self.peer.tensor(x) for x in (mel, tokens, prompt, answers(rows))]
        theirs = self.peer.seconds(lambda: self.peer.step(optimizer, *there), self.repeats)
        flops = step_flops(self.cfg, rows)
        self._tell(f"LoRA step, {rows} clips", ours, theirs, flops)
        print(f"  {memory / 2**30:.2f} GiB of arguments and temporaries")
        if peak := self._peak():
            print(f"  MFU {flops / ours / peak:.1%} of {peak / 1e12:.0f} TFLOP/s")

    def agreement(self) -> None:
        """Share of 64 clips whose best label is the same in bfloat16 and in float32."""
        tokens, counted = pack_labels(
            np.random.default_rng(1).integers(2, 600, (LABELS, LABEL_TOKENS)).tolist()
        )
        embeddings = jnp.concatenate([self._embeddings(8, seed) for seed in range(8)])
        found = []
        for dtype in ("bfloat16", "float32"):
            cfg = dataclasses.replace(self.llm.cfg, dtype=dtype, param_dtype=dtype)
            params = jax.tree.map(lambda leaf, to=dtype: leaf.astype(to), self.params["llm"])
            rows = [
                score_labels(
                    Qwen2(cfg), params, part, jnp.ones(part.shape[:2], bool), tokens, counted
                ).probabilities
                for part in jnp.split(embeddings.astype(dtype), 8)
            ]
            found.append(np.concatenate(rows))
        half, full = found
        best = np.sort(full, 1)
        clear = best[:, -1] - best[:, -2] > 0.02
        same = half.argmax(1) == full.argmax(1)
        print(
            f"agreement      {same.mean():.1%} of {len(same)} clips have the same best label in "
            f"bfloat16, {same[clear].sum()} of the {clear.sum()} with a margin of more than "
            f"0.02; largest difference {abs(half - full).max():.4f}"
        )

    def _prefill(self, params, mel, tokens, prompt):
        embeddings, mask = self._listen(params, mel, tokens, prompt)
        return self.llm.apply(
            {"params": params["llm"]}, embeddings=embeddings, mask=mask, logits="last"
        ).logits

    def _listen(self, params, mel, tokens, prompt):
        embeddings, mask, _ = self.module.apply(
            {"params": params}, None, None, prompt, jnp.ones(prompt.shape, bool), tokens=tokens,
            mel=(mel, jnp.full(len(mel), mel.shape[1])), method="listen",
        )  # fmt: skip
        return embeddings, mask

    def _generate(self, cfg: DecodingConfig):
        def run(params, embeddings):
            return generate(self.llm, params, embeddings, jnp.ones(embeddings.shape[:2], bool), cfg)

        return run

    def _embeddings(self, rows: int, seed: int = 0):
        return jax.jit(self._listen)(self.params, *self._inputs(rows, seed))[0]

    def _inputs(self, rows: int, seed: int = 0):
        """(mel float32[B, M, F], tokens float32[B, 10, C], prompt int32[B, P])."""
        rng, cfg = np.random.default_rng(seed), self.cfg
        return (
            rng.standard_normal((rows, MEL_FRAMES, cfg.encoder.mel_bins), np.float32),
            rng.standard_normal((rows, 10, cfg.connector.encoder_width), np.float32),
            rng.integers(2, 600, (rows, PROMPT)).astype(np.int32),
        )

    def _seconds(self, function, *arguments) -> float:
        return best_seconds(jax.jit(function), *arguments, seconds=0.0, least=self.repeats)

    def _peak(self) -> float | None:
        kind = jax.devices()[0].device_kind
        return next((v for name, v in PEAK_BF16_FLOPS.items() if name in kind), None)

    def _tell(self, name: str, ours: float, theirs: float, flops: float) -> None:
        print(
            f"{name:<14} {ours:.4f} s, transformers {theirs:.4f} s, ratio {theirs / ours:.2f}; "
            f"{flops / 1e9:.0f} GFLOP, {flops / ours / self.rate:.0%} of XLA's matrix-product rate "
            f"({self.rate / 1e9:.0f} GFLOP/s)"
        )


def lora_step_seconds(cfg: C2serConfig, rows: int, repeats: int) -> tuple[float, int]:
    """Seconds of the step that the trainer runs, and its bytes of arguments and temporaries."""
    task = ChainOfThought(CotConfig(trainable="link_and_lora"), cfg)
    optimizer_cfg = OptimizerConfig(learning_rate=5e-5, schedule="constant")
    optimizer = build(optimizer_cfg, 1000)
    rng = np.random.default_rng(0)
    batch = {
        "audio": 0.1 * rng.standard_normal((rows, 160 * MEL_FRAMES), np.float32),
        "audio_samples": np.full(rows, 160 * MEL_FRAMES, np.int32),
        "prompt": rng.integers(2, 600, (rows, PROMPT)).astype(np.int32),
        "prompt_tokens": np.full(rows, PROMPT, np.int32),
        "answer": answers(rows),
        "answer_tokens": np.full(rows, ANSWER, np.int32),
    }
    batch = jax.device_put(batch)
    structs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batch.items()}
    mesh = make_local_mesh()
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        shapes = state_shapes(
            task, optimizer, structs, mesh=mesh, trainable=task.trainable,
            frozen_dtype=cfg.llm.param_dtype,
        )  # fmt: skip
        state = create_state(task, optimizer, structs, shapes, key=jax.random.key(0))
        rate = learning_rate_schedule(optimizer_cfg, 1000)
        step = jax.jit(make_train_step(task, optimizer, learning_rate=rate), donate_argnums=0)
        healthy, rest = jnp.bool_(True), (batch, jnp.zeros(1, bool), jax.random.key(1))
        program = step.lower(state, healthy, *rest).compile()
        best = float("inf")
        for turn in range(repeats + 1):
            begun = time.perf_counter()
            state, healthy, outcome = program(state, healthy, *rest)
            jax.block_until_ready(outcome)
            best = min(best, time.perf_counter() - begun) if turn else best
    assert bool(healthy), "the loss or a gradient is not finite"
    memory = program.memory_analysis()
    return best, memory.argument_size_in_bytes + memory.temp_size_in_bytes


def speech_params(cfg: C2serConfig) -> dict[str, Any]:
    """Random parameters of encoder and connector, in the compute dtype."""

    def initialise(key):
        tokens = jnp.zeros((1, 10, cfg.acoustic.width))
        audio = jnp.zeros((1, 1600)), jnp.full(1, 1600)
        return C2ser(cfg).init(key, *audio, tokens=tokens, method="hear")["params"]

    params = unbox(jax.jit(initialise)(jax.random.key(0)))
    return jax.tree.map(lambda leaf: leaf.astype(cfg.llm.dtype), params)


def share(tensor):
    """Our view of a tensor on the accelerator, without a copy."""
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def copy(tensor):
    """Our copy of a tensor on the host."""
    return jnp.asarray(tensor.detach().float().numpy())


def answers(rows: int) -> np.ndarray:
    """int32[B, L] answer tokens."""
    return np.random.default_rng(2).integers(2, 600, (rows, ANSWER)).astype(np.int32)


def encoder_flops(cfg: C2serConfig, rows: int) -> float:
    """Operations of the Whisper encoder."""
    e, T = cfg.encoder, MEL_FRAMES // 2
    front = 2 * MEL_FRAMES * 3 * e.mel_bins * e.width + 2 * T * 3 * e.width**2
    block = 2 * T * (4 * e.width**2 + 2 * e.width * e.mlp_width) + 4 * T * T * e.width
    return rows * (front + e.depth * block)


def connector_flops(cfg: C2serConfig, rows: int) -> float:
    """Operations of down-sampler, connector and projection."""
    c, T, S = cfg.connector, MEL_FRAMES // 2, HEARD - 2
    down = 2 * 3 * c.encoder_width**2 * (T + T // 2 + T // 4)
    block = 2 * S * (4 * c.width**2 + 2 * c.width * c.mlp_width) + 4 * S * S * c.width
    ends = 2 * S * c.width * (c.encoder_width + c.output_width)
    return rows * (down + ends + c.depth * block)


def llm_flops(cfg: C2serConfig, rows: int, positions: int, logits: int) -> float:
    """Operations of a forward pass over `positions`, `logits` of which reach the head."""
    q = cfg.llm
    heads = q.key_value_heads * q.head_width
    matrices = q.width * (2 * q.width + 2 * heads + 3 * q.mlp_width)
    attention = 2 * positions * positions * q.width  # causal: half of all pairs is needed
    layers = q.depth * (2 * matrices * positions + attention)
    return rows * (layers + 2 * q.vocabulary * q.width * logits)


def step_flops(cfg: C2serConfig, rows: int) -> float:
    """Operations of a step that trains connector and adapters, the frozen encoder run once.

    The frozen language model has its forward pass and the gradients of its inputs, the connector
    gradients of its weights as well. Nothing is counted for recomputation or for the adapters.
    """
    llm = llm_flops(cfg, rows, POSITIONS + ANSWER, ANSWER)
    return encoder_flops(cfg, rows) + 3 * connector_flops(cfg, rows) + 2 * llm


def weight_bytes(params: Any, tied: bool) -> int:
    """Bytes of weights that a decoding step reads: all but an embedding table that is no head."""
    table = 0 if tied else params["embed_tokens"]["embedding"].nbytes
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - table


def copy_bandwidth(gpu: bool) -> float:
    """Bytes per second that a sum over a large array reads on this device."""
    x = jnp.ones((1 << 30 if gpu else 1 << 27,), jnp.bfloat16 if gpu else jnp.float32)
    total = jax.jit(lambda x: jnp.max(x))
    return x.nbytes / best_seconds(total, x, seconds=0.5)


if __name__ == "__main__":
    use_huge_pages(sys.argv[0])  # as training does; the peer has them, too
    sys.exit(main())
