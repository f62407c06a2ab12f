"""Run every command of the documentation to its end, from the top of the project.

Usage: python scripts/check_docs.py [--only WORD] [--list]

Tests parse or shorten the long ones; here nothing is left out but what would take this project apart or run its tests.
Exits 1 where a command fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARSED = ("make clean", "make test", "make lint", "make setup", "make docs-check")
"""What is only looked at: these undo, or are, what this runs in."""


def main() -> int:
    """Run, print a line a command, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="commands that hold this word")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    chosen = [(command, page) for command, page in commands() if options.only in command]
    if options.list:
        sys.stdout.write("".join(f"{page}: {command}\n" for command, page in chosen))
        return 0
    failed = [command for command, page in chosen if not works(command, page)]
    sys.stdout.write(f"{len(chosen)} commands, {len(failed)} failed\n")
    return int(bool(failed))


def commands() -> list[tuple[str, str]]:
    """Return every command of the documentation with its page, as the tests find them."""
    place = ROOT / "tests" / "docs" / "test_docs_commands.py"
    spec = importlib.util.spec_from_file_location("documented", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["documented"] = module
    spec.loader.exec_module(module)
    found: list[tuple[str, str]] = module.CASES
    return found


def works(command: str, page: str) -> bool:
    """Run a command; print how long it took and, where it fails, what it said."""
    words = shlex.split(command, comments=True)
    if any(command.startswith(parsed) for parsed in PARSED):
        words.insert(1, "-n")
    around = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    started = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, env=around, capture_output=True, text=True, check=False)
    good = done.returncode == 0
    sys.stdout.write(f"{'ok' if good else 'FAILED':<7}{time.perf_counter() - started:7.1f} s  {page}: {command}\n")
    if not good:
        sys.stdout.write("\n".join((done.stdout + done.stderr).splitlines()[-20:]) + "\n")
    sys.stdout.flush()
    return good


if __name__ == "__main__":
    sys.exit(main())
