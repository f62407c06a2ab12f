"""Tasks, and the process that does them: one thread, the last reference kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.detect.benign import Calm, Quiet
from benchmarks.detect.exposed import measure_exposed
from benchmarks.detect.measure import Bench
from benchmarks.detect.trials import Trial
from benchmarks.detect.yardstick import measure_published
from fixtures.published import PUBLISHED


@dataclass(frozen=True)
class Task:
    """One run: a trial, a benign run, or the name and seed of a published or an exposed bug."""

    kind: str
    what: Any
    seed: int = 0

    @property
    def group(self) -> Any:
        """What shares a reference."""
        if isinstance(self.what, Trial):
            return self.what.group
        return (self.what.dtype, self.what.shape, self.what.seed) if isinstance(self.what, Quiet) else self.kind


def task_key(task: Task) -> str:
    """Return the key of the row a task gives."""
    if isinstance(task.what, (Trial, Quiet)):
        return task.what.key
    return f"published|{task.what}|{task.seed}" if task.kind == "published" else f"exposed|{task.what}"


def tasks_of(
    trials: Iterable[Trial], benign: Iterable[Quiet], published: Iterable[tuple[Any, int]], exposed: Iterable[str]
) -> list[Task]:
    """List all tasks, what takes longest first."""
    ordered = sorted(trials, key=lambda t: (t.pair == "longcat", t.group))
    return [
        *(Task("trial", t) for t in ordered),
        *(Task("exposed", name) for name in exposed),
        *(Task("published", bug.name, seed) for bug, seed in published),
        *(Task("benign", run) for run in benign),
    ]


_BENCH, _CALM = Bench(), Calm()


def done_by(tasks: list[Task]) -> list[dict[str, Any]]:
    """Do tasks in this process, one thread; what cannot be run becomes a row that says so."""
    torch.set_num_threads(1)
    return [_done(task) for task in tasks]


def _done(task: Task) -> dict[str, Any]:
    try:
        return _run(task)
    except Exception as error:  # one broken task must not cost the others
        return {"source": task.kind, "key": task_key(task), "name": str(task.what), "status": "broken",
                "why": f"{type(error).__name__}: {str(error)[:300]}", "seconds": 0.0}  # fmt: skip


def _run(task: Task) -> dict[str, Any]:
    if task.kind == "trial":
        return _BENCH.measure(task.what)
    if task.kind == "benign":
        return _CALM.measure(task.what)
    if task.kind == "exposed":
        return measure_exposed(task.what)
    return measure_published(next(b for b in PUBLISHED if b.name == task.what), task.seed)
