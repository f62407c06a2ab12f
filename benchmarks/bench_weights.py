"""What matching and verifying checkpoints costs: time against reading both files once, and peak memory.

Usage: python benchmarks/bench_weights.py [--blocks N] [--width C] [--repeats N]

Writes benchmarks/results/weights.md.

Files are generated below a temporary folder and removed. All times are of one run and given as ratios to reading both
files once into a reused buffer (`read`); each command runs in a process of its own, less the time of importing it. `all
pairs` is the cosine of every pair of tensors of one shape, on the same files.

Letters: C width.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from fixtures.checkpoints import fastvideo_like, longcat_like
from parity.io.checkpoints import open_checkpoint

RESULT = Path(__file__).parent / "results" / "weights.md"
COMMAND = """
import resource, sys, time
from typer.testing import CliRunner
from parity.cli import app
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
result = CliRunner().invoke(app, ["weights", *sys.argv[1:]])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - start, (peak - base) / 1024, result.exit_code)
"""


def made(folder: Path, blocks: int, width: int) -> list[Path]:
    """Write a reference and its port in bfloat16; return both paths."""
    reference = {k: v.bfloat16() for k, v in longcat_like(blocks, width, 11 * width // 4, width // 128 or 1).items()}
    paths = [folder / "reference.safetensors", folder / "native.safetensors"]
    save_file(reference, paths[0])
    save_file({key: value.contiguous() for key, value in fastvideo_like(reference).items()}, paths[1])
    return paths


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(paths: list[Path]) -> None:
    """Read both files once into a reused buffer."""
    buffer = bytearray(8 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def all_pairs(paths: list[Path]) -> None:
    """Compute the cosine of every pair of tensors of one shape."""
    one, other = (open_checkpoint(str(path)) for path in paths)
    groups: dict[torch.Size, list[str]] = defaultdict(list)
    for key, shape in other.shapes.items():
        groups[shape].append(key)
    for key, shape in one.shapes.items():
        value = one.get_tensor(key).float().reshape(-1)
        for against in groups[shape]:
            torch.nn.functional.cosine_similarity(value, other.get_tensor(against).float().reshape(-1), dim=0)


def command(*words: str) -> tuple[float, float]:
    """Run a command in a process of its own; return seconds and MB beyond those of its imports."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=True)
    seconds, memory, code = done.stdout.split()[-3:]
    assert int(code) < 2, done.stdout + done.stderr
    return float(seconds), float(memory)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = made(Path(folder), given.blocks, given.width)
        size = sum(path.stat().st_size for path in paths)
        base = statistics.median(timed(lambda: read(paths)) for _ in range(given.repeats))
        lines = [
            f"{given.blocks} blocks of width {given.width}, {size / 1e9:.2f} GB in both files, warm", "",
            "| what | time / read | MB beyond import |", "|---|---|---|", f"| read ({base:.2f} s) | 1 | |",
        ]  # fmt: skip
        words = [str(path) for path in paths]
        for name in ("inspect", "diff", "match", "verify"):
            used = words[:1] if name == "inspect" else words
            runs = [command(name, *used) for _ in range(given.repeats)]
            ratio, memory = statistics.median(r[0] for r in runs) / base, max(r[1] for r in runs)
            lines.append(f"| {name} | {ratio:.2f} | {memory:.0f} |")
        lines.append(f"| all pairs | {timed(lambda: all_pairs(paths)) / base:.0f} | |")
    RESULT.write_text("\n".join(["# Checkpoints", "", *lines, ""]), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
