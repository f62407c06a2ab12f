"""Lattice twins: the reference's own roundings repeated on a scaled grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, broken, cases, distance, draw, shadowed
from parity.execution.storage import BITS, bits
from parity.execution.twins import LatticeTwin, round_to

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


# --- rounding ---------------------------------------------------------------------------------------------------------


def sample(kind: str, dtype: torch.dtype) -> Tensor:
    """Draw float64 values of one kind, within the normal range of every dtype."""
    powers = 2.0 ** torch.arange(-10, 11, dtype=torch.float64)
    unit = 2.0 ** (1 - BITS[dtype])
    if kind == "random":
        return draw(4000, dtype=torch.float64, scale=30.0)
    if kind == "powers of two":
        return torch.cat([powers, -powers])
    if kind == "next to powers of two":
        return torch.cat([p * (1 + s * unit * f) for p in powers for s in (-1, 1) for f in (
            torch.tensor([0.2, 0.3, 0.49, 0.51, 0.8], dtype=torch.float64),)])  # fmt: skip
    if kind == "representable":
        return draw(500, dtype=dtype).double()
    if kind == "halfway":
        return (1 + (torch.arange(64, dtype=torch.float64) + 0.5) * unit) * 4.0
    return torch.tensor([0.0, -0.0] if kind == "zero" else [math.inf, -math.inf], dtype=torch.float64)


KINDS = [
    "random", "powers of two", "next to powers of two", "representable", "halfway", "zero", "infinite",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_that_of_the_dtype(kind: str, dtype: torch.dtype) -> None:
    values = sample(kind, dtype)
    assert torch.equal(round_to(values, bits(dtype)), values.to(dtype).double())


def test_not_a_number_stays_so_and_float64_is_left_alone() -> None:
    twin, values = LatticeTwin(1.5), draw(100, dtype=torch.float64)
    assert torch.equal(twin._rounded(values, 53), values)
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0], dtype=torch.float64)
    assert torch.equal(twin._rounded(odd.clone(), 8).nan_to_num(7.0), odd.nan_to_num(7.0))
    turned = torch.complex(values, values.flip(0))
    assert torch.equal(twin._rounded(turned.clone(), 8).real, twin._rounded(values.clone(), 8))


# --- passes -----------------------------------------------------------------------------------------------------------

X, Y = draw(32, 16), draw(32, 16, seed=1)


def twin_of(program: Program, *tensors: Tensor, scale: float = 1.37) -> Tensor:
    """Return the twin's values, after checking that the low ones are the plain run's."""
    return shadowed(program, *tensors, make=partial(LatticeTwin, scale)).high


def products(x: Tensor, y: Tensor) -> Tensor:
    h = x * y
    h.mul_(x)
    return torch.cat([h, -h], -1).relu() * 3


def casts(x: Tensor, y: Tensor) -> Tensor:
    wide = x.float() * y.float()
    return (wide.bfloat16() * y).float().double()


def written(x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros(32, 16, dtype=torch.bfloat16)
    out[:16] = x[:16].float() * 0.3
    out[16:] = x[16:] * y[16:]
    return out


@pytest.mark.parametrize("program", cases(products, casts, written))
def test_on_the_unscaled_grid_a_twin_is_the_low_side(program: Program) -> None:
    """Where an op rounds correctly, a twin of scale 1 repeats it bit for bit."""
    low = program(X.clone(), Y.clone()).double()
    assert torch.equal(twin_of(program, X, Y, scale=1.0), low)
    assert not torch.equal(twin_of(program, X, Y), low)


def network(x: Tensor, *weights: Tensor) -> Tensor:
    for i, (first, second) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        h = F.layer_norm(x, (64,), eps=1e-6) if i % 2 else F.rms_norm(x.float(), (64,)).to(x.dtype)
        x = x + F.linear(F.gelu(F.linear(h, first)), second)
    return x


NETWORK = [draw(384, 64, seed=2), *(draw(64, 64, seed=i, scale=0.12) for i in range(8))]


def residuals(dtype: torch.dtype, *scales: float) -> list[Tensor]:
    """Return the residual of the low side and those of twins, all against the truth."""
    tensors = [t.to(dtype) for t in NETWORK]
    truth = shadowed(network, *tensors)
    return [truth.low - truth.high, *(twin_of(network, *tensors, scale=s) - truth.high for s in scales)]


def share(dtype: torch.dtype) -> float:
    """Return the mean residual of three twins over that of the low side."""
    low, *twins = residuals(dtype, 1.2, 1.5, 1.8)
    return math.sqrt(sum(float(t.square().mean()) for t in twins) / len(twins) / float(low.square().mean()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_twin_rounds_as_much_as_the_low_side(dtype: torch.dtype) -> None:
    assert share(dtype) == pytest.approx(1.0, rel=0.1)


def test_a_float32_twin_does_not_see_the_sums_inside_a_product() -> None:
    """It rounds what an op gives; a float32 product rounds its partial sums too."""
    assert 0.2 < share(torch.float32) < 0.9


def test_twins_are_decorrelated_from_each_other_and_from_the_low_side() -> None:
    flat = torch.stack([r.flatten() for r in residuals(torch.bfloat16, 1.11, 1.37, 1.71)])
    assert float((torch.corrcoef(flat) - torch.eye(4)).abs().max()) < 0.1


# --- moves ------------------------------------------------------------------------------------------------------------


def copied_into_a_buffer(x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:16], out[16:] = x[16:], x[:16]
    return out


def copied_up(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty(32, 16).copy_(x)


def floored(x: Tensor, y: Tensor) -> Tensor:
    return (x * 4).float().floor()


def nearest(x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(x[None, None], scale_factor=2, mode="nearest")


def reflected(x: Tensor, y: Tensor) -> Tensor:
    return F.pad(x, (2, 2), mode="reflect")


def there_and_back(x: Tensor, y: Tensor) -> Tensor:
    return x.float().bfloat16()


def doubled(x: Tensor, y: Tensor) -> Tensor:
    return x * 2 + 0


def shuffled(x: Tensor, y: Tensor) -> Tensor:
    return F.pixel_shuffle(x.view(1, 4, 8, 16), 2)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "cat": lambda x: torch.cat([x, x]),
    "stack": lambda x: torch.stack([x, -x]),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.t().contiguous(),
    "index": lambda x: x[[3, 1]],
    "mask": lambda x: x[x > 0],
    "gather": lambda x: x.gather(1, torch.zeros(32, 4, dtype=torch.long)),
    "embedding": lambda x: F.embedding(torch.tensor([3, 5]), x),
    "roll": lambda x: x.roll(1, 0).flip(1),
    "pad": lambda x: F.pad(x, (1, 1)),
    "repeat": lambda x: x.repeat(2, 1).repeat_interleave(2, 1),
    "where": lambda x: torch.where(x > 0, x, -x),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "relu": lambda x: x.relu().abs(),
    "max": lambda x: x.max(1).values,
    "topk": lambda x: x.topk(3).values.sort(descending=True).values,
    "index_put_": lambda x: x.clone().index_put_((torch.tensor([1]),), x[3]),
    "scatter_": lambda x: torch.zeros_like(x).scatter_(0, torch.zeros(1, 16, dtype=torch.long), x),
    "tril": lambda x: x.tril(),
    "cast up": lambda x: x.float().double(),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_what_only_moves_is_not_rounded(name: str) -> None:
    """Values of the inputs are not on the scaled grid: a rounding that the low side does not do would show."""
    low = MOVES[name](X).double()
    assert torch.equal(twin_of(lambda x: MOVES[name](x), X), low)


EXTRA = "a twin rounds where the low side is exact"


@pytest.mark.parametrize(
    "program",
    [*cases(copied_into_a_buffer, copied_up, floored, reflected, shuffled),
     *(broken(p, EXTRA) for p in (nearest, there_and_back, doubled))],
)  # fmt: skip
def test_what_the_low_side_does_exactly_is_not_rounded(program: Program) -> None:
    assert torch.equal(twin_of(program, X, Y), program(X, Y).double())


@pytest.mark.parametrize("name", MOVES)
def test_what_was_rounded_is_not_rounded_again_by_a_move(name: str) -> None:
    def moved(x: Tensor) -> Tensor:
        return MOVES[name](x * 0.3)

    rounded = twin_of(lambda x: x * 0.3, X)
    if name in ("mask", "where", "masked_fill", "max", "topk"):
        return  # what is picked is the low side's choice
    expected = MOVES[name](rounded) if name != "cast up" else rounded
    assert torch.equal(twin_of(moved, X), expected)


# --- 8-bit activations ------------------------------------------------------------------------------------------------


def fp8(x: Tensor, w: Tensor) -> Tensor:
    return F.linear((x * 0.7).to(torch.float8_e4m3fn).float(), w)


def int8(x: Tensor, w: Tensor) -> Tensor:
    unit = (x * 0.7).abs().amax(-1, keepdim=True) / 127
    return F.linear((x * 0.7 / unit).round().clamp(-127, 127).to(torch.int8).float() * unit, w)


@pytest.mark.parametrize("program", [*cases(fp8), broken(int8, "a twin does not round to int8")])
def test_a_twin_rounds_to_8_bits_too(program: Program) -> None:
    x, w = draw(256, 64, dtype=torch.float32), draw(64, 64, dtype=torch.float32, scale=0.12)
    truth = shadowed(program, x, w)
    assert distance(truth.low, truth.high) > 1e-3
    twin = twin_of(program, x, w)
    assert float((twin - truth.high).norm()) == pytest.approx(float((truth.low - truth.high).norm()), rel=0.1)


def test_every_float_dtype_has_its_bits() -> None:
    assert bits(torch.float8_e8m0fnu) == 1
