"""Rehearse pull requests: three commits on a repository with the bundled pair, gated by the action's own steps.

Usage: python scripts/rehearse_pull_request.py [--write]     (--write puts what came out into docs/ci.md)

The accepted state knows one difference: the final layer's modulation runs in bfloat16. One commit changes nothing that
counts (q, k and v in one matmul), one drops the FP32 cast of every block's modulation, one mends the known difference.
Exits 1 where one of them is not told what it should be told.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "ci.md"
MODEL, NUMERICS = "fixtures/models/longcat_native.py", "fixtures/models/numerics.py"
GIVEN = {
    "select": "lora_off", "pairs": "longcat", "baseline": "parity_baseline.json", "tests": "test_parity.py",
    "options": "-q -p no:cacheprovider",
}  # fmt: skip
SUITE = "def test_parity(case, parity_check):\n    parity_check(case)\n"
CONFIG = """[tool.pytest.ini_options]
addopts = "--import-mode=importlib"
pythonpath = ["."]
parity_pairs = ["pairs"]
"""
IGNORED = "reports/\n.parity_cache/\n*.txt\n__pycache__/\n"
SHOWN = re.compile(r"^(## |\*\*Gate|\| ❌|\| note|\| failed)")


@dataclass(frozen=True)
class Commit:
    """One pull request: what it says, the line it changes, whether the gate passes, what the summary must say."""

    says: str
    file: str
    before: str
    after: str
    passes: bool
    told: tuple[str, ...]


KNOWN = Commit(
    "Run the final modulation in bfloat16", MODEL, "2 * width, how, wide=how.final_fp32", "2 * width, how, wide=False",
    True, (),
)  # fmt: skip
COMMITS = (
    Commit("Project q, k and v in one matmul", NUMERICS, "fused_qkv: bool = False", "fused_qkv: bool = True", True,
           ("Parity: ",)),
    Commit("Simplify the modulation", MODEL, "6 * width, how, wide=how.adaln_fp32", "6 * width, how, wide=False", False,
           ("the baseline does not know this difference", "bit-exact with the native", "native_kernels", "bfloat16")),
    Commit("Keep the final modulation in float32", MODEL, KNOWN.after, KNOWN.before, True,
           ("a known difference is gone", "parity baseline accept")),
)  # fmt: skip


def main() -> int:
    """Rehearse, print, and say whether everything was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        parts, wrong = [], []
        for commit, shown, problem in rehearsed(Path(name)):
            parts.append(shown)
            wrong += [f"{commit.says}: {problem}"] if problem else []
            sys.stdout.write(f"{shown}\n")
    if write and not wrong:
        _put("\n".join(parts))
    sys.stdout.write("\n".join([*wrong, "as it should be" if not wrong else "NOT as it should be"]) + "\n")
    return int(bool(wrong))


def rehearsed(folder: Path) -> Iterator[tuple[Commit, str, str]]:
    """Make the repository, accept its state, then gate each commit; gives what was shown and what is wrong with it."""
    from fixtures.action import run_action, run_shell

    _make(folder)
    script = (
        "pytest -q -p no:cacheprovider -m parity -k lora_off test_parity.py > log.txt || true; "
        'parity baseline accept reports/parity.json --reason "it saves a float32 copy" '
        "--owner maintainers --expires 2999-12-31"
    )
    accepted = run_shell(script, folder, {})
    if accepted.returncode:
        raise SystemExit(accepted.stdout + accepted.stderr + (folder / "log.txt").read_text())
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", "Accept the state of today")
    for number, commit in enumerate(COMMITS):
        _git(folder, "checkout", "-q", "-b", f"pull-{number}", "main")
        _edit(folder, commit)
        _git(folder, "commit", "-qam", commit.says)
        ran = run_action(folder, GIVEN)
        missing = [words for words in commit.told if words not in ran.summary]
        problem = f"failed is {ran.failed}\n{ran.log[-3000:]}" if ran.failed is commit.passes else ""
        problem = problem or "; ".join(f"not told: {words}" for words in missing)
        yield commit, _shown(commit, folder, ran.summary, ran.failed), problem


def _make(folder: Path) -> None:
    """Make a repository of the bundled models and their pair, with one difference that will be known."""
    (folder / "pairs").mkdir()
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fixtures" / "models", folder / "fixtures" / "models", ignore=left_out)
    shutil.copy(ROOT / "fixtures" / "pairs" / "longcat.py", folder / "pairs" / "longcat.py")
    files = {"test_parity.py": SUITE, "pyproject.toml": CONFIG, ".gitignore": IGNORED}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    _edit(folder, KNOWN)
    _git(folder, "init", "-q", "-b", "main")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", "A port")


def _edit(folder: Path, commit: Commit) -> None:
    file = folder / commit.file
    text = file.read_text(encoding="utf-8")
    if text.count(commit.before) != 1:
        raise SystemExit(f"{commit.file} does not have {commit.before!r} once; renew the rehearsal")
    file.write_text(text.replace(commit.before, commit.after), encoding="utf-8")


def _git(folder: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "rehearsal" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    around = {**os.environ, **names, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(["git", *words], cwd=folder, env=around, check=True, capture_output=True, text=True).stdout


def _shown(commit: Commit, folder: Path, summary: str, failed: bool) -> str:
    diff = [line for line in _git(folder, "diff", "main", "-U0").splitlines() if re.match(r"[-+](?![-+])", line)]
    rows = [row for row in summary.splitlines() if SHOWN.match(row)]
    rows = [re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), row) for row in rows]
    head = f"**{commit.says}**: {'fails' if failed else 'passes'}."
    return "\n".join([head, "", "```diff", *diff, "```", "", "```text", *rows, "```", ""])


def _put(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- rehearsal: begin -->", "<!-- rehearsal: end -->"
    head, tail = page.partition(begin)[0], page.partition(end)[2]
    PAGE.write_text(f"{head}{begin}\n{text}{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
