"""A weight was quantised: each row is on a grid of 8 bits, near what it should be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parity.diagnose.plants import WeightPlant, linears
from parity.diagnose.signature import Seen, Words, signature

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def detect(seen: Seen) -> Words:
    """Find a weight near what it should be that takes few values: by row, by block of 32, or throughout."""
    for w in seen.found.weights:
        if w.held.dim() != 2 or w.held.numel() < 4096:
            continue
        off = float((w.held.double() - w.expected.double()).norm() / w.expected.double().norm())
        if 1e-4 < off < 0.3 and (grid := _made(w.held, w.expected) or _grid(w.held)):
            return f"{w.name} is quantised {grid}, {off:.1e} from what it should be"
    return None


def _made(held: Tensor, expected: Tensor) -> str:
    """Say how what should be held is quantised to what is, "" where no way gives it."""
    wide = expected.float()
    scales = {"a row": wide.abs().amax(1, keepdim=True).clamp_min(1e-30), "in all": wide.abs().max().clamp_min(1e-30)}
    for words, most in scales.items():
        made = {f"to {n} steps {words}": (wide / most * n).round() * most / n for n in (127, 7)}
        for dtype in _FLOAT8:
            unit = torch.finfo(dtype).max / most
            made[f"to {str(dtype).removeprefix('torch.')}, one scale {words}"] = (wide * unit).to(dtype).float() / unit
        for how, value in made.items():
            if float((value.to(held.dtype) - held).norm()) < 2.0**-7 * float((held.float() - wide).norm()):
                return how
            if float((value.to(held.dtype) == held).float().mean()) > 0.9:
                return how
    plain = (d for d in _FLOAT8 if held.equal(wide.to(d).to(held.dtype)))
    return next((f"to {str(d).removeprefix('torch.')}" for d in plain), "")


def _grid(held: Tensor) -> str:
    """Say on which grid a weight lies, "" on none."""
    largest = held.double().abs().amax(1, keepdim=True).clamp_min(1e-300)
    for levels in (127, 7):
        steps = held.double() / largest * levels
        if held.element_size() == 4 and float((steps - steps.round()).abs().max()) < 0.02:
            return f"to {levels} steps a row"
    return "to 8 bits" if len(torch.unique(held)) <= 256 else ""


def edit(module: nn.Module) -> int:
    """Round each row to 127 steps of its largest element."""
    for _, linear in linears(module)[:1]:
        weight = linear.get_parameter("weight")
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        weight.copy_((weight.float() / scale).round() * scale)
        return 1
    return 0


SIGNATURE = signature("weights_quantised", "quant", -4, detect, WeightPlant(edit), on="both")
