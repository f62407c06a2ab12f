"""A project of its own for each test: pair files, the two lines of a user's suite, pytest in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.tiny import tiny_pair
from parity.io.records import read_record
from parity.pair import Build
from parity.run import run_state
from parity.session import opened

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import torch
from dataclasses import replace
from fixtures.tiny import *
from fixtures.tiny import output_of, tiny_pair
from parity.errors import SourceMissing
from parity.execution.tap import Layout, Point, Tap
from parity.pair import Source

def note(word):
    with open("calls.txt", "a") as file:
        file.write(word + "\\n")
"""
SUITE = """
def test_parity(case, parity_check):
    parity_check(case)
"""


@dataclass
class Run:
    """What one run of pytest left behind."""

    result: pytest.RunResult
    folder: Path

    @property
    def code(self) -> int:
        return int(self.result.ret)

    @property
    def text(self) -> str:
        return self.result.stdout.str() + self.result.stderr.str()

    @property
    def ids(self) -> list[str]:
        """Ids of collected cases, from `--collect-only -q`."""
        return [line.split("[", 1)[1].rstrip("]") for line in self.result.outlines if "::" in line and "[" in line]

    @property
    def record(self) -> dict[str, Any]:
        return read_record(self.folder / "reports" / "parity.json")

    @property
    def has_record(self) -> bool:
        return (self.folder / "reports" / "parity.json").exists()

    @property
    def outcomes(self) -> dict[str, str]:
        return {case["id"]: case["outcome"] for case in self.record["cases"]}

    def cases(self, outcome: str) -> list[str]:
        return [id for id, found in self.outcomes.items() if found == outcome]

    def message(self, id: str) -> list[str]:
        """The lines of one failure."""
        lines = self.result.outlines
        start = next(i for i, line in enumerate(lines) if line.startswith("_") and f"[{id}]" in line)
        ends = ("_____", "=====", "-----")
        end = next(i for i in range(start + 1, len(lines)) if lines[i].startswith(ends))
        return [line for line in lines[start + 1 : end] if line]


@dataclass
class Project:
    """Pair files by name, and pytest called on the two-line suite."""

    pytester: pytest.Pytester
    suite: str = SUITE
    calls: Path = field(init=False)

    def __post_init__(self) -> None:
        self.pytester.makeini("[pytest]\nparity_pairs = pairs\n")
        self.pytester.mkdir("pairs")
        self.calls = self.pytester.path / "calls.txt"

    def pair(self, name: str, text: str | None = None, head: str = HEAD) -> None:
        """Write a pair file; a healthy tiny pair by default."""
        text = f"PAIR = tiny_pair({name!r})" if text is None else text
        (self.pytester.path / "pairs" / f"{name}.py").write_text(head + text, encoding="utf-8")

    def run(self, *arguments: str, apart: bool = False) -> Run:
        """Run pytest here, or in a process of its own."""
        self.pytester.makepyfile(test_suite=self.suite)
        run = self.pytester.runpytest_subprocess if apart else self.pytester.runpytest_inprocess
        return Run(run("-p", "no:cacheprovider", *arguments), self.pytester.path)

    @property
    def noted(self) -> list[str]:
        return self.calls.read_text().split() if self.calls.exists() else []


@pytest.fixture(scope="package", autouse=True)
def quick() -> Iterator[None]:
    """Run on one thread, and let torch import what it imports late.

    On a busy machine two threads wait far longer for each other than these models take, and pytester forgets modules
    that a run inside it is the first to import.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with opened(tiny_pair(), Build()) as session:
        run_state(session, lora=True)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Project(pytester)
