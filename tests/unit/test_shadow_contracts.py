"""The two contracts of shadow execution, on programs nobody wrote.

Small random programs run plain, under a shadow, and in float64 by an evaluation of their own: there every cast down is
a copy, and what floats decided is what the plain run decided. Low values must be the plain run's, bit for bit; every
shadow value must be the float64 one, or NaN where floats left torch; never a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import draw, trusted_or_true
from parity.execution.shadow import Shadow
from parity.execution.trace import same_bits

CASTS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass
class Machine:
    """What a program runs on: matrices, some of them views of others.

    Args:
        registers: the matrices; every step appends one or writes into some.
        told: decisions and copies of the plain run; None: this is the plain run, which tells.
        exact: run in float64, without a cast down.
    """

    registers: list[Tensor]
    exact: bool = False
    told: list[Tensor | bool] | None = None
    tells: list[Tensor | bool] = field(default_factory=list)
    leaks: bool = False

    def decide(self, decision: Tensor) -> Tensor:
        """Return the plain run's decision."""
        self.tells.append(decision)
        if not self.exact:
            return decision
        assert self.told is not None
        said = self.told[len(self.tells) - 1]
        assert isinstance(said, Tensor)
        return said

    def cast(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Cast; in float64, copy where the plain run made a copy."""
        self.tells.append(value.dtype != dtype)
        if not self.exact:
            return value.to(dtype)
        assert self.told is not None
        return value.clone() if self.told[len(self.tells) - 1] else value

    def wide(self, value: Tensor) -> Tensor:
        """Cast to float32 or better, as a model does before what it holds delicate."""
        return self.cast(value, torch.float64 if value.dtype == torch.float64 else torch.float32)

    def run(self, program: list[tuple[str, int, int, int]]) -> Tensor:
        """Run a program and return the last register, and all others of its shape, as one tensor."""
        for name, i, j, k in program:
            a, b = self.registers[i % len(self.registers)], self.registers[j % len(self.registers)]
            made = STEPS[name](self, a, b, k)
            if made is not None:
                self.registers.append(made)
        last = self.registers[-1]
        return torch.cat([self.wide(r).reshape(-1) for r in (last, *self.registers[:6])])


def crop(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    return a[:rows, :columns], b[:rows, :columns]


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Copy a source that shares memory with the target: torch does not say what an overlapping write does."""
    return b.clone() if a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() else b


def write(m: Machine, a: Tensor, b: Tensor, how: Callable[[Tensor, Tensor], object]) -> None:
    target, source = crop(a, b)
    how(target, apart(target, source))


def product(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    n = min(a.shape[1], b.shape[0])
    return (a[:, :n] @ m.cast(b[:n], a.dtype)) * 0.3


def linear(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    n = min(a.shape[1], b.shape[1])
    return F.linear(a[:, :n], m.cast(b[:, :n], a.dtype)) * 0.3


def rows_written(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    out = a.new_zeros(a.shape)
    out[k % 2 :: 2] = a[k % 2 :: 2]
    target, source = crop(out, b)
    target[:2].copy_(source[:2])
    return out


def empty_written(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    out = torch.empty_like(a)
    out[:2], out[2:] = a[:2] * 0.7, a[2:]
    return out


def put(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(a)
    order = (torch.arange(a.shape[0]) + k) % a.shape[0]
    return out.index_put_((order,), a, accumulate=bool(k % 2))


def chunks(m: Machine, a: Tensor, b: Tensor, k: int) -> None:
    first, second = a.chunk(2, k % 2)
    first.mul_(0.5)
    second.add_(0.1 * k)


def masked(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    x, y = crop(a, b)
    mask = m.decide(x > y)
    return torch.where(mask, x * 0.3, 0.25) if k % 2 else x.masked_fill(mask, 0.3)


def best(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    index = m.decide(a.topk(2, -1).indices)
    found = a.gather(1, index) if m.exact else a.topk(2, -1).values
    return torch.cat([found, found], -1)


def ordered(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    index = m.decide(a.sort(0, descending=bool(k % 2)).indices)
    return a.gather(0, index) if m.exact else a.sort(0, descending=bool(k % 2)).values


def turned(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    wide = m.wide(a[:, :4].contiguous()).clone()
    angles = m.wide(a[:, 4:6] if a.shape[1] > 5 else a[:, :2]).clone()
    spun = torch.view_as_complex(wide.view(-1, 2, 2)) * torch.polar(torch.ones_like(angles), angles)
    return m.cast(torch.view_as_real(spun).flatten(1), a.dtype)


def quantised(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    if m.exact:
        return a.clone()
    if k % 2:
        return a.to(torch.float8_e5m2).to(a.dtype)
    return (a * 16).round().clamp(-127, 127).to(torch.int8).to(a.dtype) / 16


def attention(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    q, v = a[None, None], m.cast(b, a.dtype)[None, None]
    n = min(a.shape[1], b.shape[1])
    return F.scaled_dot_product_attention(q[..., :n], v[..., :n], v, is_causal=bool(k % 2))[0, 0]


def into(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    return torch.mul(a, 0.3, out=torch.empty_like(a) if k % 2 else torch.empty(0, dtype=a.dtype))


def item(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    m.leaks = True
    return a * b.mean().item()


def numpy(m: Machine, a: Tensor, b: Tensor, k: int) -> Tensor:
    m.leaks = True
    return m.cast(torch.from_numpy(m.wide(a).numpy() * 0.5), a.dtype)


Step = Callable[[Machine, Tensor, Tensor, int], "Tensor | None"]
STEPS: dict[str, Step] = {
    "product": product, "linear": linear, "rows_written": rows_written, "empty_written": empty_written, "put": put,
    "chunks": chunks, "masked": masked, "best": best, "ordered": ordered, "turned": turned, "quantised": quantised,
    "attention": attention, "into": into, "item": item, "numpy": numpy,
    "cast": lambda m, a, b, k: m.cast(a, CASTS[k % 4]),
    "cast_back": lambda m, a, b, k: m.cast(m.cast(a, CASTS[k % 4]), a.dtype),
    "add": lambda m, a, b, k: torch.add(*crop(a, b), alpha=0.3),
    "multiply": lambda m, a, b, k: torch.mul(*crop(a, b)).tanh(),
    "assign": lambda m, a, b, k: write(m, a, b, lambda t, s: t.copy_(s)),
    "assign_slice": lambda m, a, b, k: write(m, a[:2], b, lambda t, s: t.__setitem__(slice(None), s)),
    "add_": lambda m, a, b, k: write(m, a, b, lambda t, s: t.add_(s, alpha=0.3)),
    "mul_": lambda m, a, b, k: a.mul_(0.1 * (k + 1)) if a.is_contiguous() else a[:, :2].mul_(0.7),
    "foreach": lambda m, a, b, k: write(m, a, b, lambda t, s: torch._foreach_add_([t], [s])),
    "transpose": lambda m, a, b, k: a.t(),
    "reshape": lambda m, a, b, k: a.reshape(a.shape[::-1]),
    "slice": lambda m, a, b, k: a[k % 3 : k % 3 + 4] if a.shape[0] > 6 else a[:, :4],
    "data": lambda m, a, b, k: a.data,
    "clone": lambda m, a, b, k: a.clone(),
    "index": lambda m, a, b, k: a[(torch.arange(8) * (k + 1)) % a.shape[0]],
    "expand": lambda m, a, b, k: a[:1].expand(8, -1) * 0.7,
    "stack": lambda m, a, b, k: torch.stack(a.unbind(1), 1),
    "cat": lambda m, a, b, k: torch.cat(crop(a, b), k % 2)[:8, :8],
    "softmax": lambda m, a, b, k: m.wide(a).softmax(k % 2),
    "layer_norm": lambda m, a, b, k: F.layer_norm(a, a.shape[1:], eps=0.1),
    "gelu": lambda m, a, b, k: F.gelu(a, approximate="tanh" if k % 2 else "none"),
    "silu": lambda m, a, b, k: F.silu(a),
    "center": lambda m, a, b, k: a - a.mean(k % 2, keepdim=True),
}  # fmt: skip
LEAKS = ("item", "numpy")

programs = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 7), st.integers(0, 7), st.integers(0, 5)),
    min_size=1, max_size=12,
)  # fmt: skip
ROOTS = [draw(8, 8), draw(8, 6, seed=1, dtype=torch.float32), draw(6, 8, seed=2, dtype=torch.float64)]


@settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs)
def test_any_program_keeps_both_contracts(program: list[tuple[str, int, int, int]]) -> None:
    with torch.no_grad():
        plain = Machine([r.clone() for r in ROOTS])
        expected = plain.run(program)
        shadowed = Machine([r.clone() for r in ROOTS])
        with Shadow(roots=shadowed.registers) as shadow:
            low = shadowed.run(program)
        exact = Machine([r.to(torch.float64, copy=True) for r in ROOTS], exact=True, told=plain.tells).run(program)
    assert same_bits(low, expected)
    assert all(same_bits(a, b) for a, b in zip(shadowed.registers, plain.registers, strict=True))
    trusted = trusted_or_true(shadow.high(low), exact)
    if not shadowed.leaks:
        assert bool(trusted.all()), f"not trusted although nothing left torch: {dict(shadow.events)}"
