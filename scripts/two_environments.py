"""Judge the bundled pair across two virtual environments, and check that the record is that of one process.

Usage: python scripts/two_environments.py [--fresh]     (environments and recordings below build/two_environments/)

The reference's environment gets the base install only: no pytest, no hypothesis. Its torch is another version
than the native's where one installs without CUDA packages. With one torch the two records must agree field by field;
with two, verdict by verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from parity.io.records import read_record

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "two_environments"
CANDIDATES = ("torch==2.12.*", "torch==2.11.*", "torch==2.10.*")
"""Tried for the reference in turn; else it gets the native's version."""
MISSING = ("pytest", "hypothesis", "plotly", "diffusers")
"""What the reference's environment must do without; jinja2 comes with torch itself."""
SELECTED = ("-m", "parity", "-k", "longcat and not longcat_fastvideo", "-q", "-p", "no:cacheprovider", "tests/suite")
VOLATILE = ("seconds", "peak_memory_bytes", "reference_from", "rerun")
TRYING = 180
"""Seconds to look for another torch."""


def run(*command: str | Path, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command at the project's root, on two threads, without this process's own paths."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=ROOT, env={**kept, "OMP_NUM_THREADS": "2"}, text=True, check=False, capture_output=quiet
    )  # fmt: skip


def required(*command: str | Path) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = run(*command, quiet=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def other_torch(python: Path) -> str | None:
    """Return a torch of another version that needs no CUDA package; None where there is none."""
    report = WORK / "found.json"
    for spec in CANDIDATES:
        look = ("-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps")
        command = [str(python), *look, "--only-binary", ":all:", "--report", str(report), spec]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TRYING, check=False)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode == 0:
            found = json.loads(report.read_text(encoding="utf-8"))["install"][0]["metadata"]
            needs = " ".join(found.get("requires_dist", ()))
            if "nvidia" not in needs and "cuda" not in needs:
                return f"torch=={found['version']}"
            print(f"  {spec}: {found['version']} needs CUDA packages, left out")
    return None


def environment(name: str, wheel: Path, extra: str, *more: str) -> Path:
    """Make a virtual environment with this project in it, once; returns its folder of programs."""
    folder = WORK / name
    programs = folder / "bin"
    if not (folder / "ready").exists():
        print(f"making {folder.relative_to(ROOT)}")
        venv.create(folder, with_pip=True, clear=True)
        pins = ROOT / "requirements" / "lock.txt"
        pinned = [] if more else ["--constraint", str(pins)]
        required(programs / "python", "-m", "pip", "install", "--quiet", *pinned, *more, f"{wheel}{extra}")
        (folder / "ready").touch()
    return programs


def built_wheel() -> Path:
    """Build this project's wheel: what a user installs, without fixtures and tests."""
    wheels = WORK / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    required(sys.executable, *build)
    return next(wheels.glob("*.whl"))


def environments(fresh: bool) -> tuple[Path, Path]:
    """Return the programs of the reference's and of the native's environment, with the present code in both."""
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    wheel = built_wheel()
    native = environment("native", wheel, "[suite]")
    spec = None if (WORK / "reference" / "ready").exists() else other_torch(native / "python")
    reference = environment("reference", wheel, "", *([spec] if spec else []))
    for programs in (reference, native):
        again = ("-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
        required(programs / "python", *again)
    return reference, native


def described(programs: Path) -> str:
    """Return the torch and Python of an environment, and which of the packages it must do without it has."""
    code = (
        "import importlib.util as u, platform, torch;"
        f"have = [n for n in {MISSING!r} if u.find_spec(n)];"
        "print(f'torch {torch.__version__}, Python {platform.python_version()}, has', ', '.join(have) or 'none',"
        f"'of {', '.join(MISSING)}')"
    )
    return required(programs / "python", "-c", code).strip()


def differences(one: dict[str, Any], other: dict[str, Any], fields: tuple[str, ...] = ()) -> list[str]:
    """Name the fields in which two records of one pair differ; all fields but the volatile where none is named."""
    found = []
    rows = [[*record["cases"], *record["pairs"]] for record in (one, other)]
    if len(rows[0]) != len(rows[1]):
        return [f"{len(rows[0])} cases and states against {len(rows[1])}"]
    for mine, theirs in zip(*rows, strict=True):
        name = mine.get("id", mine["state"])
        for field in {**mine, **theirs}:
            wanted = field in fields if fields else field not in VOLATILE
            if wanted and json.dumps(mine.get(field)) != json.dumps(theirs.get(field)):
                found.append(f"{name} {field}: {mine.get(field)} against {theirs.get(field)}")
    return found


def judged(programs: Path, name: str, *options: str) -> dict[str, Any]:
    """Judge the pair in an environment; returns the record."""
    report = WORK / "reports" / name
    shutil.rmtree(report, ignore_errors=True)
    done = run(programs / "pytest", *SELECTED, "--parity-report", str(report), *options, quiet=True)
    print(f"  {name}: {done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]}")
    return read_record(report / "parity.json")


def main() -> int:
    """Record in one environment, judge in the other, compare with one process; return an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    reference, native = environments(parser.parse_args().fresh)
    kinds = {"reference": described(reference), "native": described(native)}
    for side, kind in kinds.items():
        print(f"{side}: {kind}")
    recording = WORK / "recording"
    shutil.rmtree(recording, ignore_errors=True)
    print(required(reference / "parity", "record", "longcat", "--side", "reference", "-o", recording).strip())
    python = ("--parity-reference-python", str(reference / "python"))
    two = judged(native, "two_environments", "--parity-reference", str(recording), *python)
    one = judged(native, "one_process", "--parity-residency=together")
    same_torch = kinds["reference"].split(",")[0] == kinds["native"].split(",")[0]
    found = differences(one, two, () if same_torch else ("verdict", "outcome"))
    print("\n".join(found[:10]))
    what = "fields" if same_torch else "verdicts (two versions of torch)"
    print(f"{len(one['cases'])} cases, {len(one['pairs'])} states: {len(found)} {what} differ")
    return int(bool(found) or " none of" not in kinds["reference"])


if __name__ == "__main__":
    sys.exit(main())
