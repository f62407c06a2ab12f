"""The usual gates, side by side on the same outputs.

Sources: MSE and cosine as ports state them in their reports; atol = rtol = 0.1 as FastVideo's guide allows for a whole
DiT; FlashAttention's tests (error at most twice the original's own, plus a little); torch's `same` of its compiler
benchmarks (`torch/_dynamo/utils.py`) with a float64 reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """What gates look at: both outputs as computed, and the original's float64 result."""

    reference: Tensor
    native: Tensor
    truth: Tensor


def _mse(o: Outputs) -> bool:
    return float((o.native.double() - o.reference.double()).square().mean()) <= 1e-4


def _cosine(o: Outputs) -> bool:
    n, r = o.native.double().flatten(), o.reference.double().flatten()
    return float(torch.nn.functional.cosine_similarity(n, r, dim=0)) >= 0.999


def _allclose(o: Outputs) -> bool:
    return torch.allclose(o.native.double(), o.reference.double(), atol=0.1, rtol=0.1)


def _flash(o: Outputs) -> bool:
    truth = o.truth.to(o.reference.dtype)
    slack = 2 * float((truth + 0.3 - 0.3 - truth).abs().max())
    mine, theirs = (float((v.double() - o.truth).abs().max()) for v in (o.native, o.reference))
    return mine <= 2 * theirs + slack


def _same(o: Outputs) -> bool:
    from torch._dynamo.utils import same

    logging.getLogger("torch._dynamo.utils").setLevel(logging.CRITICAL)
    tol = 1e-3 if o.reference.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return bool(same(o.reference, o.native.to(o.reference.dtype), o.truth, tol=tol, equal_nan=False))


GATES: dict[str, Callable[[Outputs], bool]] = {
    "MSE 1e-4": _mse, "cosine 0.999": _cosine, "atol = rtol = 0.1": _allclose, "FlashAttention 2x": _flash,
    "torch `same`": _same,
}  # fmt: skip
"""By name, in the order of the tables; each says whether outputs pass."""


def alarms(outputs: Outputs) -> list[str]:
    """List the gates that fail."""
    if not bool(outputs.native.isfinite().all()):
        return list(GATES)
    return [name for name, passes in GATES.items() if not passes(outputs)]
