"""Measure what was found on two threads: one reads while the other computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from parity.weights.matching.exact import Measurer
from parity.weights.matching.lines import Assignment, Part
from parity.weights.source import ElementSource

Metrics = dict[str, float]
Job = tuple[str, Assignment, Part]
THREADS = 2


def measured(
    reference: ElementSource, native: ElementSource, jobs: Sequence[Job], tell: Callable[[int], None]
) -> Iterator[tuple[Job, Metrics]]:
    """Yield each job with its metrics, in order. Left early, the work that has not begun is dropped."""
    held, stopped = threading.local(), threading.Event()

    def told(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError
        tell(count)

    def work(job: Job) -> Metrics:
        if not hasattr(held, "measurer"):
            torch.set_num_threads(1)
            held.measurer = Measurer(reference, native, told)
        measurer: Measurer = held.measurer
        return measurer.measure(*job)

    with _threads_kept(), ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(work, job) for job in jobs]
        try:
            for job, future in zip(jobs, waiting, strict=True):
                yield job, future.result()
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restore how many threads torch uses: a thread that sets its own number sets that of threads made later."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)



