"""The pretraining step of `benchmarks/pretrain.py` in torch: same sizes, same products, SDPA.

Weights and masks are random and every utterance has one length: it is measured, not trained.
`python benchmarks/peer_torch.py` reads JSON from standard input, as `benchmarks/pretrain.py` writes
it, and prints the seconds of a step last.

Shapes: B utterances, C clones, R = B * C, N samples, T frames, K kept frames, E extra tokens,
D width, H heads.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

PROJECT = Path(__file__).resolve().parents[1]


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, channels, T]."""

    def forward(self, input):
        """Same shape as `input`."""
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Post-norm transformer block with attention through scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, bias):
        """Maps [B, S, D] with an attention bias [1, H, S, S] to (output, perceptron's output)."""
        B, S, D = x.shape
        query, key, value = (
            self.qkv(x).view(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = self.norm1(x + self.proj(y.transpose(1, 2).reshape(B, S, D)))
        result = self.fc2(F.gelu(self.fc1(x)))
        return self.norm2(x + result), result


class Student(nn.Module):
    """Stem, position encoder, blocks and decoder of `encoder` and `data2vec` configs."""

    def __init__(self, encoder: Any, data2vec: Any):
        super().__init__()
        self.heads = encoder.heads
        stem, channels = [], 1
        for layer in encoder.conv_layers:
            conv = nn.Conv1d(channels, layer.channels, layer.kernel, layer.stride, bias=False)
            stem += [conv, ChannelNorm(layer.channels), nn.GELU()]
            channels = layer.channels
        D, taps = encoder.width, encoder.position_kernel
        self.stem = nn.Sequential(*stem, ChannelNorm(channels))
        self.project = nn.Linear(channels, D)
        self.positions = nn.Sequential(*(
            nn.Sequential(
                nn.Conv1d(D, D, taps, padding=taps // 2, groups=encoder.position_groups),
                ChannelNorm(D, elementwise_affine=False),
                nn.GELU(),
            )
            for _ in range(encoder.position_depth)
        ))  # fmt: skip
        self.tokens = nn.Parameter(torch.randn(encoder.extra_tokens, D))
        count = encoder.prenet_depth + encoder.depth
        self.blocks = nn.ModuleList(
            Block(D, encoder.heads, encoder.mlp_ratio) for _ in range(count)
        )
        decoder, inputs = [], D
        for _ in range(data2vec.decoder_depth):
            width, kernel = data2vec.decoder_width, data2vec.decoder_kernel
            conv = nn.Conv1d(
                inputs, width, kernel, padding=kernel // 2, groups=data2vec.decoder_groups
            )
            decoder += [conv, ChannelNorm(width, elementwise_affine=False), nn.GELU()]
            inputs = width
        self.decoder, self.regress = nn.Sequential(*decoder), nn.Linear(inputs, D)

    def features(self, audio):
        """[B, N] -> [B, T, D]."""
        return self.project(self.stem(audio[:, None]).transpose(1, 2))

    def contextualise(self, x, kept=None):
        """Frames [B, T, D], of which `kept` int64[B, K] are seen -> (output, layer results)."""
        x = x + self.positions(x.transpose(1, 2)).transpose(1, 2)
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)
        bias = self.distance_bias(x)
        results = []
        for block in self.blocks:
            x, result = block(x, bias)
            results.append(result)
        return x, results

    def distance_bias(self, x):
        """ALiBi [1, H, S, S] of x [B, S, D]."""
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        heads = self.heads
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=x.device, dtype=x.dtype) / heads)
        return (-(places[:, None] - places).abs() * slopes[:, None, None])[None]


def pretraining_step_seconds(
    encoder: Any, data2vec: Any, rows: int, samples: int, *, steps: int, gpu: bool
) -> float:
    """Seconds of the fastest of `steps` steps: forward, backward, AdamW and moving average.

    `encoder` and `data2vec` are the configs that our side runs; float32 on the CPU's threads, or
    bfloat16 by autocast on a GPU.
    """
    device = torch.device("cuda" if gpu else "cpu")
    student = Student(encoder, data2vec).to(device)
    teacher = Student(encoder, data2vec).to(device).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), 7.5e-5, fused=gpu)
    audio = 0.1 * torch.randn(rows, samples, device=device)
    labels = torch.arange(rows, device=device) // 2
    times = []
    for _ in range(steps + 1):  # the first warms up
        begun = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
            loss = pretraining_loss(student, teacher, data2vec, audio, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(teacher.parameters(), student.parameters(), strict=True):
                average.lerp_(parameter, 1e-3)
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def pretraining_loss(student: Student, teacher: Student, data2vec: Any, audio, labels):
    """Frame, utterance and category losses of audio [B, N] with labels int64[B], one scalar."""
    clones, E = data2vec.clone_batch, len(student.tokens)
    local = student.features(audio)
    B, T, D = local.shape
    with torch.no_grad():
        results = teacher.contextualise(local.detach())[1][-data2vec.average_top_k_layers :]
        layers = [F.instance_norm(r[:, E:].float().transpose(1, 2)) for r in results]
        target = torch.stack(layers).mean(0).transpose(1, 2).repeat_interleave(clones, 0)
    order = torch.rand(B * clones, T, device=audio.device).argsort(1)
    kept = order[:, : data2vec.kept_frames(T)]
    x, _ = student.contextualise(local.repeat_interleave(clones, 0), kept)
    tokens, frames = x[:, :E], x[:, E:]
    whole = torch.randn(B * clones, T, D, device=x.device, dtype=x.dtype) * 0.01
    whole = whole.scatter(1, kept[:, :, None].expand(-1, -1, D), frames)
    predicted = student.regress(student.decoder(whole.transpose(1, 2)).transpose(1, 2)).float()
    hidden = torch.ones(B * clones, T, device=x.device).scatter(1, kept, 0.0)
    frame = ((predicted - target).square().mean(2) * hidden).sum() / hidden.sum()
    utterance = (tokens.mean(1).float() - target.mean(1)).square().mean()
    pooled = F.normalize(frames.mean(1).float().view(B, clones, D).mean(1), dim=1)
    logits = pooled @ pooled.T / 0.07 - 1e9 * torch.eye(B, device=x.device)
    partners = (labels[:, None] == labels).float() - torch.eye(B, device=x.device)
    category = -(F.log_softmax(logits, 1) * partners).sum() / partners.sum().clamp(min=1)
    return frame + 0.1 * utterance + category


def main() -> int:
    """Measures what standard input names and prints the seconds."""
    sys.path.insert(0, str(PROJECT))
    from c2ser_jax.models.data2vec import Data2VecConfig
    from c2ser_jax.models.emotion2vec import Emotion2VecConfig

    job = json.loads(sys.stdin.read())
    encoder = Emotion2VecConfig.from_dict(job.pop("encoder"))
    data2vec = Data2VecConfig(**job.pop("data2vec"))
    print(pretraining_step_seconds(encoder, data2vec, **job))
    return 0


if __name__ == "__main__":
    sys.exit(main())
