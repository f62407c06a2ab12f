"""The original: fused projections, one Sequential for each embedding.

Letters in shapes: B batch, F H W latent frames, height and width, S tokens, L text tokens, N heads, D head dim, C width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(t: Tensor, size: int) -> Tensor:
    """[B] -> float32 [B, size]."""
    steps = torch.arange(size // 2, dtype=torch.float32, device=t.device)
    phase = t.float()[:, None] * torch.exp(-math.log(10000.0) * steps / (size // 2))
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, S, C]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """[B, S, C], [B, L, C] -> [B, S, C]."""
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, heads)
        self.cross = CrossAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """[B, S, C], [B, L, C], [B, C] -> [B, S, C]."""
        shift, scale, gate = self.modulation(F.silu(time))[:, None].chunk(3, dim=-1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift)
        x = x + self.cross(x, text)
        return x + self.mlp(self.norm2(x))


class VideoDiT(nn.Module):
    def __init__(
        self, depth: int = 2, width: int = 64, heads: int = 2, channels: int = 4, text_width: int = 24, freq: int = 32
    ) -> None:
        super().__init__()
        self.freq = freq
        self.patch_embedding = nn.Conv3d(channels, width, (1, 2, 2), (1, 2, 2))
        self.time_embedding = nn.Sequential(nn.Linear(freq, width), nn.SiLU(), nn.Linear(width, width))
        self.text_embedding = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 4 * channels)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x [B, channels, F, H, W], t [B], context [B, L, text_width] -> as x."""
        h = self.patch_embedding(x)
        grid = h.shape[2:]
        h = h.flatten(2).transpose(1, 2)
        time = self.time_embedding(sinusoid(t, self.freq).to(h.dtype))
        text = self.text_embedding(context)
        for block in self.blocks:
            h = block(h, text, time)
        h = self.head(self.norm(h)).unflatten(1, grid).unflatten(-1, (2, 2, -1))
        return h.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
