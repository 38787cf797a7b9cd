"""C2SER's parts in PyTorch: transformers' Whisper encoder and Qwen2, a connector between them.

Random weights that our side is then given, so that both compute the same numbers. Whisper runs on
the clip's own length (its position table is cut to it), not on 30 s of silence.

Shapes: B clips, M mel frames, T encoder frames, E acoustic tokens, S heard positions, P prompt
tokens, L answer tokens, D width of the language model.
"""

import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.connector import STRIDES


class LoraLinear(nn.Module):
    """A frozen linear map with a float32 adapter beside it; no dropout, so that steps compare."""

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        device = base.weight.device
        bound = 1 / math.sqrt(base.in_features)
        first = torch.empty(rank, base.in_features, device=device).uniform_(-bound, bound)
        self.a = nn.Parameter(first)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x):
        """[..., in] -> [..., out]."""
        low = F.linear(x, self.a.to(x.dtype))
        return self.base(x) + F.linear(low, self.b.to(x.dtype)) * self.scale


class Connector(nn.Module):
    """Causal down-sampling, acoustic tokens in front, pre-norm blocks, projection, speech marks."""

    def __init__(self, cfg: C2serConfig):
        super().__init__()
        connector = cfg.connector
        C, D = connector.encoder_width, connector.width
        self.convolutions = nn.ModuleList(nn.Conv1d(C, C, 3, stride=s) for s in STRIDES)
        self.embed, self.norm = nn.Linear(C, D), nn.LayerNorm(D)
        layer = nn.TransformerEncoderLayer(
            D, connector.heads, connector.mlp_width, 0.0, norm_first=True, batch_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, connector.depth, enable_nested_tensor=False)
        self.after = nn.LayerNorm(D)
        self.project = nn.Linear(D, connector.output_width)
        self.marks = nn.Parameter(torch.randn(2, connector.output_width))
        self.register_buffer("positions", torch.randn(connector.positions, D), persistent=False)

    def forward(self, tokens, frames):
        """tokens [B, E, C], frames [B, T, C] -> [B, S + 2, D]."""
        x = frames.transpose(1, 2)
        for convolution in self.convolutions:
            x = F.gelu(convolution(F.pad(x, (2, 0))))
        x = torch.cat([tokens, x.transpose(1, 2)], 1)
        x = self.norm(self.embed(x))
        x = x * math.sqrt(x.shape[-1]) + self.positions[: x.shape[1]].to(x.dtype)
        x = self.project(self.after(self.blocks(x)))
        begin, end = (mark.expand(len(x), 1, -1).to(x.dtype) for mark in self.marks)
        return torch.cat([begin, x, end], 1)


class Peer:
    """The three parts on one device; `dtype` is what the frozen parts are stored in."""

    def __init__(self, cfg: C2serConfig, mel_frames: int, device: str, dtype: torch.dtype):
        torch.manual_seed(0)
        self.cfg, self.device, self.dtype = cfg, torch.device(device), dtype
        encoder, llm = cfg.encoder, cfg.llm
        torch.set_default_dtype(dtype)  # nothing is ever made in a wider type
        try:
            with self.device:
                self.encoder = WhisperEncoder(
                    WhisperConfig(
                        num_mel_bins=encoder.mel_bins, d_model=encoder.width,
                        encoder_layers=encoder.depth, encoder_attention_heads=encoder.heads,
                        encoder_ffn_dim=encoder.mlp_width,
                        max_source_positions=-(-mel_frames // 2), dropout=0.0,
                        attn_implementation="sdpa",
                    )
                )  # fmt: skip
                self.llm = Qwen2ForCausalLM(
                    Qwen2Config(**llm.to_huggingface(), attn_implementation="sdpa")
                )
                self.connector = Connector(cfg)
        finally:
            torch.set_default_dtype(torch.float32)
        for part in (self.encoder, self.llm, self.connector):
            part.requires_grad_(False).eval()

    def tensor(self, array: np.ndarray):
        """An array on the device, floating-point ones in the peer's dtype, others int64."""
        found = torch.from_numpy(np.array(array)).to(self.device)
        return found.to(self.dtype) if found.is_floating_point() else found.long()

    def listen(self, mel, tokens, prompt):
        """mel [B, M, F], tokens [B, E, C], prompt int64[B, P] -> embeddings [B, P + S + 2, D]."""
        frames = self.encoder(mel.transpose(1, 2)).last_hidden_state
        speech = self.connector(tokens, frames)
        return torch.cat([self.llm.model.embed_tokens(prompt), speech.to(self.dtype)], 1)

    @torch.inference_mode()
    def prefill(self, mel, tokens, prompt):
        """Logits [B, V] behind the speech, and the embeddings they came from."""
        embeddings = self.listen(mel, tokens, prompt)
        output = self.llm(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], embeddings

    @torch.inference_mode()
    def generate(self, embeddings, tokens: int, beams: int = 1):
        """Exactly `tokens` tokens, greedily or with beams, int64[B, tokens]."""
        return self.llm.generate(
            inputs_embeds=embeddings, attention_mask=torch.ones_like(embeddings[:, :, 0]).long(),
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=beams,
            pad_token_id=0, eos_token_id=1,
        )  # fmt: skip

    def train(self) -> Any:
        """Gives the language model adapters and thaws the connector; returns AdamW of both.

        The connector's trained weights are float32, as ours are.
        """
        lora = self.cfg.llm.lora
        assert lora is not None
        trained: list[nn.Parameter] = []
        for layer in self.llm.model.layers:
            for owner in (layer.self_attn, layer.mlp):
                for name in lora.targets:
                    if isinstance(base := getattr(owner, name, None), nn.Linear):
                        adapter = LoraLinear(base, lora.rank, lora.scale)
                        setattr(owner, name, adapter)
                        trained += [adapter.a, adapter.b]
        self.connector.float().requires_grad_(True).train()
        trained += list(self.connector.parameters())
        return torch.optim.AdamW(trained, 5e-5, fused=self.device.type == "cuda")

    def step(self, optimizer, mel, tokens, prompt, answer) -> float:
        """One step of the connector and the adapters; answer int64[B, L] -> the loss."""
        checkpointed = self.cfg.llm.remat
        if checkpointed:
            self.llm.train()  # transformers checkpoints in training mode alone
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.no_grad():
            frames = self.encoder(mel.transpose(1, 2)).last_hidden_state
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
            speech = self.connector(tokens, frames)
        embed = self.llm.model.embed_tokens
        embeddings = torch.cat([embed(prompt), speech.to(self.dtype), embed(answer)], 1)
        output = self.llm(
            inputs_embeds=embeddings, logits_to_keep=answer.shape[1] + 1, use_cache=False
        )
        logits = output.logits[:, :-1].float()
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), answer.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def seconds(self, call, repeats: int) -> float:
        """Wall time of the fastest of `repeats` calls after one that warms up."""
        best = math.inf
        for turn in range(repeats + 1):
            self.wait()
            begun = time.perf_counter()
            call()
            self.wait()
            best = min(best, time.perf_counter() - begun) if turn else best
        return best

    def wait(self) -> None:
        """Returns when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def language_model_tree(peer: Peer, convert) -> dict[str, Any]:
    """The peer's Qwen2 as parameters of ours with `scan_layers=False`.

    `convert(tensor)` makes one of our arrays, without a copy where it can.
    """
    state = dict(peer.llm.named_parameters())
    tree: dict[str, Any] = {
        "embed_tokens": {"embedding": convert(state["model.embed_tokens.weight"])},
        "norm": {"scale": convert(state["model.norm.weight"])},
    }
    if not peer.cfg.llm.tied_head:
        tree["lm_head"] = {"embedding": convert(state["lm_head.weight"])}
    for i in range(peer.cfg.llm.depth):
        source = f"model.layers.{i}."
        layer: dict[str, Any] = {"self_attn": {}, "mlp": {}}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            layer[norm] = {"scale": convert(state[f"{source}{norm}.weight"])}
        for part, names in (
            ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
            ("mlp", ("gate_proj", "up_proj", "down_proj")),
        ):
            for name in names:
                found = {"kernel": convert(state[f"{source}{part}.{name}.weight"])}
                if f"{source}{part}.{name}.bias" in state:
                    found["bias"] = convert(state[f"{source}{part}.{name}.bias"])
                layer[part][name] = found
        tree[f"layers_{i}"] = layer
    return tree
