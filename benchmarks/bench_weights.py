"""What the commands on checkpoints cost: time against reading both files once, and peak memory.

Usage: python benchmarks/bench_weights.py [--gigabytes G] [--width C] [--repeats N] [--folder DIR]

Writes benchmarks/results/weights.md.

Files of about G gigabytes each are generated below a temporary folder and removed: Wan-like against diffusers-like
(renames), LongCat-like against FastVideo-like (fused tensors cut), that also with 1 % noise (every value differs).
Every time is taken beside one of reading both files once into a reused buffer and given as their ratio; the median
over the repeats stands in the table. Cold means that both files were dropped from the page cache just before. Each
command runs in a process of its own, after one call of its help; memory is its peak beyond that.

Letters: C width, G gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from fixtures.checkpoints import State, diffusers_like, diffusers_name, fastvideo_like, longcat_like, noisy, wan_like
from parity.io.checkpoints import open_checkpoint

RESULT = Path(__file__).parent / "results" / "weights.md"
COMMAND = """
import re, sys, time
from pathlib import Path
from typer.testing import CliRunner
from parity.cli import app
def held(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
runner = CliRunner()
runner.invoke(app, ["weights", sys.argv[1], "--help"])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before, start = held("VmRSS"), time.perf_counter()
result = runner.invoke(app, ["weights", *sys.argv[1:]])
print(time.perf_counter() - start, (held("VmHWM") - before) / 1024, result.exit_code)
"""
Paths = Sequence[Path]
PAIRS_TIMED = 6
COUNTED = """Time is that of the whole command, from its arguments to its last line, without the imports its help needs.
It is divided by that of reading both files once on one thread, into a reused buffer. Cold, the disk decides: tensors
are asked for ahead, two at once. Warm, equal values cost a comparison, as fast as reading. Where every value
differs, two conversions, a difference, three products and two sums do more work than reading does."""


def written(folder: Path, name: str, state: State) -> Path:
    """Write a state dict in bfloat16."""
    path = folder / f"{name}.safetensors"
    save_file({key: value.bfloat16().contiguous() for key, value in state.items()}, path)
    return path


def made(folder: Path, layout: str, blocks: int, width: int) -> list[Path]:
    """Write a reference and its port; the third file, of LongCat's layout, is the port with 1 % noise."""
    if layout == "wan":
        state = wan_like(blocks, width, 11 * width // 4)
        return [written(folder, "wan", state), written(folder, "diffusers", diffusers_like(state))]
    state = longcat_like(blocks, width, 11 * width // 4, max(width // 128, 1))
    port = fastvideo_like(state)
    tuned = {key: noisy(value, 0.01) for key, value in port.items()}
    return [written(folder, "longcat", state), written(folder, "fastvideo", port), written(folder, "tuned", tuned)]


def read(paths: Paths) -> float:
    """Return the seconds of reading files once into a reused buffer."""
    buffer, start = bytearray(1 << 20), time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def drop(paths: Paths) -> None:
    """Take files out of the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def command(*words: str) -> tuple[float, float]:
    """Run a command in a process of its own; return seconds and peak MB, both beyond what its help took."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=True)
    seconds, memory, code = done.stdout.split()[-3:]
    assert int(code) < 2, done.stdout + done.stderr
    return float(seconds), float(memory)


def ratio(paths: Paths, words: Sequence[str], repeats: int, cold: bool) -> tuple[float, float, float]:
    """Return the median ratio of a command's time to reading, its seconds, and the greatest peak."""
    ratios, seconds, peaks = [], [], []
    for _ in range(repeats):
        if cold:
            drop(paths)
        base = read(paths)
        if cold:
            drop(paths)
        took, peak = command(*words, *(str(path) for path in paths))
        ratios.append(took / base)
        seconds.append(took)
        peaks.append(peak)
    return statistics.median(ratios), statistics.median(seconds), max(peaks)


def all_pairs(paths: Paths) -> float:
    """Return the seconds of the cosine of every pair of one shape: a few of each shape are timed, and multiplied."""
    one, other = (open_checkpoint(str(path)) for path in paths)
    groups: dict[torch.Size, list[str]] = defaultdict(list)
    for key, shape in other.shapes.items():
        groups[shape].append(key)
    counts = Counter(shape for shape in one.shapes.values() if shape in groups)
    first = {shape: key for key, shape in reversed(one.shapes.items())}
    return sum(_pair_seconds(lambda s=shape: _cosine(one.get_tensor(first[s]), other.get_tensor(groups[s][0])))  # type: ignore[misc]
               * count * len(groups[shape]) for shape, count in counts.items())  # fmt: skip


def _cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one.float().reshape(-1), other.float().reshape(-1), dim=0)


def _pair_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(PAIRS_TIMED):
        work()
    return (time.perf_counter() - start) / PAIRS_TIMED


def headers(folder: Path, gigabytes: int) -> list[Path]:
    """Write files that claim so many gigabytes in all and hold none: for commands that read headers."""
    sizes = {64: 5120, 160: 13824, 384: 30720, 96: 4096, 32: 256}
    small = {key: [sizes.get(n, n) for n in value.shape] for key, value in wan_like(2).items()}
    blocks = max(round(gigabytes * 56 / 80), 2)
    shapes = {key: shape for key, shape in small.items() if not key.startswith("blocks.")}
    shapes |= {key.replace("blocks.0.", f"blocks.{n}."): shape for n in range(blocks) for key, shape in small.items()
               if key.startswith("blocks.0.")}  # fmt: skip
    renamed = {diffusers_name(key): shape for key, shape in shapes.items()}
    return [_hollow(folder / "h1.safetensors", shapes), _hollow(folder / "h2.safetensors", renamed)]


def _hollow(path: Path, shapes: Mapping[str, Sequence[int]]) -> Path:
    at, entries = 0, {}
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        entries[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def rows_of(folder: Path, given: argparse.Namespace) -> list[str]:
    """Measure both layouts; return the rows of the table and what follows from them."""
    rows: list[str] = []
    for layout, per_block in (("wan", 13.5), ("longcat", 20.5)):
        blocks = max(round(given.gigabytes * 1e9 / (2 * per_block * given.width**2)), 2)
        files = made(folder, layout, blocks, given.width)
        for name, paths in {layout: files[:2], f"{layout}, 1 % noise": [files[0], files[-1]]}.items():
            if len(files) == 2 and "noise" in name:
                continue
            for cold in (True, False):
                rows.append(_row(name, paths, given, cold))
                print(rows[-1], flush=True)
        rows += _linear(folder, layout, blocks, files, given)
        for file in files:
            file.unlink()
    return rows


def _row(name: str, paths: Paths, given: argparse.Namespace, cold: bool) -> str:
    found, seconds, peak = ratio(paths, ["match", "--memory", given.memory], given.repeats, cold)
    size = sum(path.stat().st_size for path in paths) / 1e9
    pairs = f"{all_pairs(paths) / seconds:.0f}" if not cold else ""
    state = "cold" if cold else "warm"
    return f"| match | {name} | {size:.1f} | {state} | {found:.2f} | {seconds:.2f} | {peak:.0f} | {pairs} |"


def _linear(folder: Path, layout: str, blocks: int, files: Paths, given: argparse.Namespace) -> list[str]:
    """Measure half the blocks too: what a block costs, hence larger files."""
    _, whole, _ = ratio(files[:2], ["match", "--memory", given.memory], given.repeats, cold=False)
    size = sum(path.stat().st_size for path in files[:2]) / 1e9
    inner = folder / "half"
    inner.mkdir(exist_ok=True)
    halves = made(inner, layout, max(blocks // 2, 1), given.width)[:2]
    _, half, _ = ratio(halves, ["match", "--memory", given.memory], given.repeats, cold=False)
    small = sum(path.stat().st_size for path in halves) / 1e9
    for path in inner.iterdir():
        path.unlink()
    per = (whole - half) / (size - small)
    row = f"| match, half the blocks | {layout} | {small:.1f} | warm | | {half:.2f} | | |"
    return [row, f"| model: {half - per * small:.2f} s + {per:.3f} s/GB | {layout} | 77 | warm | | "
                 f"{half + per * (77 - small):.0f} | | |"]  # fmt: skip


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of each file")
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--folder", help="where the files go; a disk, not memory, or cold means nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        rows = rows_of(Path(name), given)
        hollow = headers(Path(name), 80)
        for words in (["inspect"], ["diff"]):
            paths = [str(path) for path in hollow[: 1 if words == ["inspect"] else 2]]
            seconds, memory = command(*words, *paths)
            rows.append(f"| {words[0]} | headers of 80 GB | | | | {seconds:.2f} | {memory:.0f} | |")
    head = ["# Checkpoints", "", f"Width {given.width}, --memory {given.memory}, {given.repeats} repeats, "
            f"{os.cpu_count()} cores.", "", COUNTED, "",
            "| what | files | GB in all | page cache | time / read | s | MB beyond import | all pairs / match |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    RESULT.write_text("\n".join([*head, *rows, ""]), encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
