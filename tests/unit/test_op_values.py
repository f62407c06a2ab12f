"""Ops are linked to the parameters they read, cast copies included, and to no others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity.execution.op_values import OpShadow
from parity.execution.roots import roots_of


class Island(nn.Module):
    """A float32 island whose weights are cast in each call; what follows may take the memory of the dead copies."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20):
            x = F.linear(x, self.linear.weight.float(), self.linear.bias.float())
            half, other = x.split(32, -1)
            x = F.layer_norm(torch.cat([other * 2, half * 3], -1), (64,)) * 1.5
        return x


def test_memory_of_a_dead_copy_is_no_parameter() -> None:
    model, x = Island(), torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    shadow = OpShadow(roots=roots_of(model, (x,)))
    shadow.name_parameters(model.named_parameters())
    with torch.no_grad(), shadow:
        model(x)
    read: dict[str, set[tuple[str, ...]]] = {}
    for op in shadow.given.values():
        read.setdefault(op.op.name, set()).add(op.weights)
    assert read.pop("addmm") == {("linear.bias", "linear.weight")}
    assert read.pop("_to_copy") == {("linear.weight",), ("linear.bias",)}
    assert set().union(*read.values()) == {()}
