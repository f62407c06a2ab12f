"""What shadow execution costs: time against plain + float64 forward, and peak memory, on a small DiT of torch modules.

Usage: python benchmarks/bench_shadow.py [--repeats N] [--check]     (writes benchmarks/results/shadow.md)

Times are medians over interleaved repeats in one process. Memory is the peak growth of the resident set in a process
per variant: what the operating system counts, with the allocator's waste in it. `--check` exits 1 above a limit.

Letters in shapes: B batch, S tokens, N heads, D head dim, C channels.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity.execution.roots import roots_of
from parity.execution.shadow import Shadow

RESULT = Path(__file__).parent / "results" / "shadow.md"
VARIANTS = ("plain", "float64", "shadow")
MEMORY_DEPTH = 8
MB = 1e6


@dataclass(frozen=True)
class Shape:
    """A size to measure. `limit`: of shadow time over plain + float64 time."""

    tokens: int
    width: int
    heads: int
    limit: float


SHAPES = (Shape(1024, 1024, 16, 1.0), Shape(256, 256, 4, 2.0))


class Block(nn.Module):
    """Self-attention and MLP, each modulated and gated as DiT blocks are."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads, 1e-6), nn.RMSNorm(width // heads, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Run the block. Shapes: x [B, S, C], t [B, 1, C], result [B, S, C]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(t)).chunk(6, dim=-1)
        x = x + gate1 * self._attention(self.norm1(x) * (1 + scale1) + shift1)
        hidden = F.gelu(self.up(self.norm2(x) * (1 + scale2) + shift2), approximate="tanh")
        out: Tensor = x + gate2 * self.down(hidden)
        return out

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Model(nn.Module):
    """A stack of blocks."""

    def __init__(self, shape: Shape, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Run the blocks. Shapes: as a block's."""
        for block in self.blocks:
            x = block(x, t)
        return x


def build(shape: Shape, depth: int, dtype: torch.dtype) -> tuple[Model, tuple[Tensor, Tensor]]:
    """Return a model built in its dtype, never wider, and its inputs."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = Model(shape, depth).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    inputs = torch.randn(1, shape.tokens, shape.width), torch.randn(1, 1, shape.width)
    return model, (inputs[0].to(dtype), inputs[1].to(dtype))


def shadowed(model: Model, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the shadow of the output; making the mode belongs to the pass."""
    shadow = Shadow(roots_of(model, inputs))
    with torch.no_grad(), shadow:
        out = model(*inputs)
        return shadow.high(out)


def plain(model: Model, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the output of a forward as it is."""
    with torch.no_grad():
        out: Tensor = model(*inputs)
        return out


def measure_times(shape: Shape, repeats: int) -> dict[str, float]:
    """Return the median seconds of each variant, and the distance of shadow and float64 outputs."""
    model, inputs = build(shape, 1, torch.bfloat16)
    wide, wide_inputs = copy.deepcopy(model).double(), (inputs[0].double(), inputs[1].double())
    runs: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain(model, inputs),
        "float64": lambda: plain(wide, wide_inputs),
        "shadow": lambda: shadowed(model, inputs),
    }
    error = float((runs["shadow"]() - runs["float64"]()).norm() / runs["float64"]().norm())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {**{name: statistics.median(taken) for name, taken in seconds.items()}, "error": error}


def measure_memory(shape: Shape) -> dict[str, float]:
    """Return each variant's peak growth in bytes, the model's bytes and the bytes of its largest layer in float64."""
    found = {variant: _peak_in_process(variant, shape) for variant in VARIANTS}
    with torch.device("meta"):
        layers = [sum(p.numel() for p in m.parameters(recurse=False)) for m in Model(shape, MEMORY_DEPTH).modules()]
    return {**found, "model": 2.0 * sum(layers), "largest": 8.0 * max(layers)}


def _peak_in_process(variant: str, shape: Shape) -> float:
    command = [sys.executable, __file__, "--peak", variant, str(SHAPES.index(shape))]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def peak(variant: str, shape: Shape) -> int:
    """Return by how many bytes building a model and one forward raise this process's peak resident set."""
    run = shadowed if variant == "shadow" else plain
    run(*build(Shape(16, 32, 2, 0.0), 1, torch.bfloat16))  # what the first call of each kind loads is not the model's
    before = _status("VmRSS")
    run(*build(shape, MEMORY_DEPTH, torch.float64 if variant == "float64" else torch.bfloat16))
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """Return a size of this process in bytes. (getrusage's ru_maxrss also counts the process that started this one.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def time_row(shape: Shape, found: dict[str, float]) -> tuple[str, float]:
    """Return a row of the table of times and the ratio in it."""
    ratio = found["shadow"] / (found["plain"] + found["float64"])
    times = " | ".join(f"{1e3 * found[v]:.1f}" for v in VARIANTS)
    judged = f"{ratio:.2f} | {shape.limit:.1f} | {found['error']:.0e}"
    return f"| {shape.tokens:,} x {shape.width:,} | {times} | {judged} |", ratio


def memory_row(shape: Shape, found: dict[str, float]) -> str:
    """Return a row of the table of memory: the sum is model, largest layer in float64, activations of both passes."""
    activations = (found["plain"] - found["model"]) + (found["float64"] - 4 * found["model"])
    allowed = found["model"] + found["largest"] + activations
    cells = (found["model"], found["largest"], activations, allowed, found["shadow"])
    numbers = " | ".join(f"{cell / MB:,.0f}" for cell in cells)
    return f"| {shape.tokens:,} x {shape.width:,} | {numbers} | {found['shadow'] / allowed:.2f} |"


PAGE = """\
# What shadow execution costs

Made by `make bench-shadow`: {where}, bfloat16 weights, batch 1.

Time in ms of one block, medians over {repeats} interleaved repeats in one run. Ratio: shadow over plain + float64
forward. Distance: of the shadow output from the float64 forward's, relative.

| tokens x width | plain | float64 | shadow pass | ratio | limit | distance |
|---|---|---|---|---|---|---|
{times}

Peak memory in MB of {depth} blocks, growth of the resident set in a process of its own. Activations: what a plain and
a float64 forward need beside their weights, measured. Ratio: shadow pass over the sum.

| tokens x width | model | largest layer in float64 | activations | sum | shadow pass | ratio |
|---|---|---|---|---|---|---|
{memory}
"""


def page(times: list[str], memory: list[str], repeats: int) -> str:
    """Return the page that is written."""
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    where = f"torch {torch.__version__}, {machine}"
    rows = {"times": "\n".join(times), "memory": "\n".join(memory)}
    return PAGE.format(where=where, repeats=repeats, depth=MEMORY_DEPTH, **rows)


def main() -> int:
    """Measure, print and write; return an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio of times is above its limit")
    parser.add_argument("--peak", nargs=2, metavar=("VARIANT", "SHAPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(2)
    if given.peak:
        print(peak(given.peak[0], SHAPES[int(given.peak[1])]))
        return 0
    rows = [time_row(shape, measure_times(shape, given.repeats)) for shape in SHAPES]
    text = page([row for row, _ in rows], [memory_row(s, measure_memory(s)) for s in SHAPES], given.repeats)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)
    over = any(ratio > shape.limit for shape, (_, ratio) in zip(SHAPES, rows, strict=True))
    return int(given.check and over)


if __name__ == "__main__":
    sys.exit(main())
