"""FunASR's emotion2vec with our weights, run by its own sequential loop: the peer of extract.py.

Builds FunASR's model from a config with random weights, loads what our exporter wrote, and calls
its `inference` file by file, as its AutoModel does. Needs the extra `bench` (torch, funasr).

`python benchmarks/peer_funasr.py WEIGHTS CONFIG` reads lines of JSON from standard input, each
{"files": {id: path}, "output": folder}, and answers each with {"seconds", "peak_gib"}.
"""

import argparse
import contextlib
import importlib.machinery
import io
import json
import logging
import resource
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any


def import_funasr() -> Any:
    """FunASR's model class; a stub stands in for torchaudio, so that soundfile reads the audio."""
    if "torchaudio" not in sys.modules:
        stub = types.ModuleType("torchaudio")
        stub.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = stub
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from funasr.models.emotion2vec.model import Emotion2vec
    return Emotion2vec


def build(weights: Path, config: dict[str, Any], *, device: str, half: bool) -> Any:
    """FunASR's model with the state dict of a file in its layout, which must have every tensor."""
    import torch  # noqa: TID251

    model = import_funasr()(model_conf=config)
    state = torch.load(weights, weights_only=True, map_location="cpu")["model"]
    state = {name.removeprefix("d2v_model."): value for name, value in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    unused = [name for name in unexpected if not name.startswith("proj.")]
    if missing or unused:
        raise SystemExit(f"FunASR's model and our export differ: {missing[:3]} {unused[:3]}")
    model.eval().to(device)
    if half:
        _compute_in_half(model)
    return model


def _compute_in_half(model: Any) -> None:
    """Takes float32 waveforms and gives float32 features, in bfloat16 and fused attention between.

    FunASR's attention is written out by hand; torch's `scaled_dot_product_attention` replaces it.
    """
    import torch  # noqa: TID251
    import torch.nn.functional as F  # noqa: TID251
    from funasr.models.emotion2vec.modules import AltAttention

    def forward(self, x, padding_mask=None, alibi_bias=None):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = None if alibi_bias is None else alibi_bias[:, : self.num_heads].to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(B, N, C))

    original = type(model).extract_features

    def extract_features(self, source, **more):
        result = original(self, source.to(torch.bfloat16), **more)
        return {**result, "x": result["x"].float()}

    AltAttention.forward = forward
    model.to(torch.bfloat16)
    model.extract_features = types.MethodType(extract_features, model)


def extract(model: Any, files: dict[str, str], output: Path, device: str) -> float:
    """Seconds of FunASR's sequential loop over `files`; frames appear as `output`/<id>.npy."""
    import torch  # noqa: TID251

    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for name, path in files.items():
        with torch.no_grad():
            model.inference(
                data_in=[path], key=[name], granularity="frame", device=device,
                output_dir=str(output), extract_embedding=True,
            )  # fmt: skip
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Answers jobs from standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("config", type=Path, help="JSON: FunASR's model_conf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="bfloat16 with torch's fused attention")
    arguments = parser.parse_args(argv)
    import torch  # noqa: TID251

    torch.set_num_threads(arguments.threads)
    device = "cuda" if arguments.gpu else "cpu"
    config = json.loads(arguments.config.read_text())
    model = build(arguments.weights, config, device=device, half=arguments.gpu)
    print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        with contextlib.redirect_stdout(io.StringIO()):
            seconds = extract(model, job["files"], Path(job["output"]), device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_gib": peak}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
