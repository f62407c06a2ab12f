"""What `parity lora diff` costs: time against reading both files and the QRs alone, and peak memory.

Usage: python benchmarks/bench_lora.py [--blocks 48] [--width 4096] [--rank 64] [--check]  (writes results/lora.md)

The comparison runs in a process of its own; its peak resident set is what the operating system counted. `--check` exits
1 above the limits.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch

from parity.io.lora_files import open_lora
from parity.io.safetensors_source import SafetensorsSource
from parity.lora.compare import compared
from parity.lora.delta import upper
from parity.lora.formats import LoraFile, read_lora
from parity.lora.loaded import LoadedLora

RESULT = Path(__file__).parent / "results" / "lora.md"
TIME_LIMIT, MEMORY_LIMIT = 2.0, 1e9
LAYERS = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "cross_attn.q_linear": (1, 1), "cross_attn.kv_linear": (2, 1),
          "cross_attn.proj": (1, 1), "ffn.w1": (2.6875, 1), "ffn.w2": (1, 2.6875), "ffn.w3": (2.6875, 1)}  # fmt: skip
"""Of each block: outputs and inputs in widths."""


def write(path: Path, blocks: int, width: int, rank: int, seed: int) -> None:
    """Write a file in bfloat16."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for block in range(blocks):
        for name, (out, into) in LAYERS.items():
            for factor, size in (("A", (rank, int(into * width))), ("B", (int(out * width), rank))):
                key = f"diffusion_model.blocks.{block}.{name}.lora_{factor}.weight"
                tensors[key] = torch.randn(size, generator=generator).bfloat16()
    safetensors.torch.save_file(tensors, path)


def read(path: Path) -> LoadedLora:
    """Open a file as the command does."""
    opened = open_lora(path)
    return read_lora(LoraFile(opened.source, opened.header, opened.sidecar))


def measure(first: Path, second: Path) -> dict[str, float]:
    """Measure the comparison, and reading and decomposing alone."""
    start = time.perf_counter()
    compared(read(first), read(second))
    whole = time.perf_counter() - start
    peak = peak_resident()
    start = time.perf_counter()
    alone(first, second)
    return {"seconds": whole, "alone": time.perf_counter() - start, "peak": peak}


def peak_resident() -> int:
    """Return this program's peak resident bytes; `ru_maxrss` would count what its parent held when it was started."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def alone(first: Path, second: Path) -> None:
    """Read both files once and make the two QRs of each layer, nothing else."""
    one, other = SafetensorsSource(first), SafetensorsSource(second)
    for key in one.keys():  # noqa: SIM118
        dim = 0 if "lora_A" in key else 1
        both = torch.cat([one.get_tensor(key), other.get_tensor(key)], dim).double()
        upper(both.t() if dim == 0 else both)


def main() -> int:
    """Measure, write the page; 1 above a limit where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--files", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.files:
        print(json.dumps(measure(*given.files)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{seed}.safetensors" for seed in range(2)]
        for seed, file in enumerate(files):
            write(file, given.blocks, given.width, given.rank, seed)
        size = files[0].stat().st_size
        command = [sys.executable, __file__, "--files", *map(str, files)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    page = report(found, size, given)
    RESULT.write_text(page, encoding="utf-8")
    print(page)
    return int(given.check and (found["seconds"] > TIME_LIMIT * found["alone"] or found["peak"] > MEMORY_LIMIT))


def report(found: dict[str, float], size: int, given: argparse.Namespace) -> str:
    """Return the page."""
    return (
        "# `parity lora diff`\n\n"
        f"Two bfloat16 files, {given.blocks} blocks, {given.width} wide, rank {given.rank}, {size / 1e6:.0f} MB each; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}.\n\n"
        "| | measured | limit |\n|---|---|---|\n"
        f"| comparing | {found['seconds']:.1f} s | |\n"
        f"| reading both and the QRs alone | {found['alone']:.1f} s | |\n"
        f"| ratio | {found['seconds'] / found['alone']:.2f} | {TIME_LIMIT:g} |\n"
        f"| peak resident | {found['peak'] / 1e6:.0f} MB | {MEMORY_LIMIT / 1e6:.0f} MB |\n"
    )


if __name__ == "__main__":
    sys.exit(main())
