"""Kill `parity record` at random moments, resume each time, and compare with a recording that was never interrupted.

Usage: python scripts/kill_and_resume.py [PAIR] [--kills N] [--seed N] [--pairs DIR]     (below build/kill_and_resume/)

Every kill is a SIGKILL at a moment drawn uniformly from the time a whole recording takes after its first word (before
that only modules are imported); the next run resumes. A recording that came to its end must hold the same files with
the same bytes as one that was never interrupted; then it starts again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "kill_and_resume"


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Start `parity record` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "parity", "record", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(words: list[str]) -> float:
    """Run `parity record` to its end; returns the seconds since its first word."""
    process = start(words)
    assert process.stdout is not None
    said = [process.stdout.readline()]
    started = time.perf_counter()
    said += process.stdout.readlines()
    if process.wait():
        sys.exit(f"parity record failed:\n{b''.join(said).decode()}")
    return time.perf_counter() - started


def killed(words: list[str], after: float) -> str:
    """Kill `parity record` some seconds after its first word; returns the last it said."""
    process = start(words)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    lines = (first + process.stdout.read()).decode().strip().splitlines()
    return f"{'was done' if process.wait() == 0 else 'killed'} at {lines[-1].strip() if lines else 'its start'!r}"


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of every file of a folder, hidden ones included."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.blake2b(f.read_bytes(), digest_size=16).hexdigest() for f in files}


def main() -> int:
    """Record once whole and once with kills, compare; return an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pair", nargs="?", default="longcat")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", default=None)
    given = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    words = [given.pair, "--side", "reference", "--device", "cpu", *(["--pairs", given.pairs] if given.pairs else [])]
    whole = [*words, "-o", str(WORK / "whole")]
    length = finished(whole)
    print(f"uninterrupted: {length:.1f} s")
    same = True
    draw, resumed = random.Random(given.seed), [*words, "-o", str(WORK / "killed"), "--resume"]
    for number in range(given.kills):
        after = draw.uniform(0.0, length)
        print(f"kill {number + 1:2d} after {after:5.1f} s: {killed(resumed, after)}", flush=True)
        if (WORK / "killed" / "manifest.json").exists():
            same &= check(WORK / "whole", WORK / "killed")
            shutil.rmtree(WORK / "killed")
    finished(resumed)
    same &= check(WORK / "whole", WORK / "killed")
    print(f"{len(digests(WORK / 'whole'))} files, {'the same bytes' if same else 'OTHER BYTES'}")
    return int(not same)


def check(whole: Path, other: Path) -> bool:
    """Compare two recordings, and name what differs."""
    one, two = digests(whole), digests(other)
    apart = sorted(name for name in {**one, **two} if one.get(name) != two.get(name))
    print(f"complete: {len(apart)} files differ {apart[:5]}")
    return not apart


if __name__ == "__main__":
    sys.exit(main())
