"""The port: split projections, other names, keyword arguments, a dataclass for what it returns."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Output:
    sample: Tensor


class TimestepEmbedder(nn.Module):
    def __init__(self, freq: int, width: int) -> None:
        super().__init__()
        self.freq = freq
        self.linear_1, self.linear_2 = nn.Linear(freq, width), nn.Linear(width, width)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class TextEmbedder(nn.Module):
    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(text_width, width), nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        other = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(value).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, value in ((self.to_q, hidden_states), (self.to_k, other), (self.to_v, other))
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.adaln = nn.Linear(dim, 3 * dim)
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn1, self.attn2 = Attention(dim, num_heads), Attention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = nn.ModuleDict({"up": nn.Linear(dim, 4 * dim), "down": nn.Linear(4 * dim, dim)})

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> Tensor:
        shift, scale, gate = self.adaln(F.silu(temb)).unsqueeze(1).chunk(3, dim=2)
        attended = self.attn1(self.norm1(hidden_states) * (1 + scale) + shift)
        hidden_states = hidden_states + gate * attended
        hidden_states = hidden_states + self.attn2(hidden_states, encoder_hidden_states)
        return hidden_states + self.ff["down"](
            F.gelu(self.ff["up"](self.norm3(hidden_states)), approximate="tanh")
        )


class VideoTransformer3DModel(nn.Module):
    def __init__(
        self, num_layers: int = 2, dim: int = 64, num_heads: int = 2, in_channels: int = 4, text_dim: int = 24
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch_embed = nn.Conv3d(in_channels, dim, (1, 2, 2), (1, 2, 2))
        self.time_embedder = TimestepEmbedder(32, dim)
        self.caption_embedder = TextEmbedder(text_dim, dim)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(dim, num_heads) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(dim, eps=1e-6)
        self.proj_out = nn.Linear(dim, 4 * in_channels)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Output:
        batch, _, frames, height, width = hidden_states.shape
        tokens = self.patch_embed(hidden_states).flatten(2).mT
        temb = self.time_embedder(self._sinusoid(timestep).to(tokens.dtype))
        text = self.caption_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            tokens = block(tokens, text, temb)
        patches = self.proj_out(self.norm_out(tokens)).view(batch, frames, height // 2, width // 2, 2, 2, -1)
        sample = torch.einsum("bfhwpqc->bcfhpwq", patches).reshape(batch, -1, frames, height, width)
        return Output(sample)

    def _sinusoid(self, timestep: Tensor) -> Tensor:
        half = self.time_embedder.freq // 2
        index = torch.arange(half, dtype=torch.float32, device=timestep.device)
        phase = torch.outer(timestep.float(), torch.exp(index * -math.log(10000.0) / half))
        return torch.cat((torch.cos(phase), torch.sin(phase)), dim=1)
