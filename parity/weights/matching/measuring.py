"""Measure what was found on two threads: one reads while the other computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from parity.weights.matching.exact import Measurer
from parity.weights.matching.lines import Assignment, Part
from parity.weights.source import ElementSource

Metrics = dict[str, float]
THREADS = 2


class Measuring:
    """Measures what is handed to it, beside the search for more; a context, at whose end open work is dropped.

    Args:
        reference, native: both checkpoints.
        tell: called with the bytes compared, by any thread.
    """

    def __init__(self, reference: ElementSource, native: ElementSource, tell: Callable[[int], None]) -> None:
        self._sources, self._tell = (reference, native), tell
        self._held, self._stopped = threading.local(), threading.Event()
        self._pool = ThreadPoolExecutor(THREADS)

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, key: str, found: Assignment, part: Part) -> Future[Metrics]:
        """Hand a part over."""
        return self._pool.submit(self._measure, key, found, part)

    def _measure(self, key: str, found: Assignment, part: Part) -> Metrics:
        if not hasattr(self._held, "measurer"):
            torch.set_num_threads(1)
            self._held.measurer = Measurer(*self._sources, self._told)
        measurer: Measurer = self._held.measurer
        return measurer.measure(key, found, part)

    def _told(self, count: int) -> None:
        if self._stopped.is_set():
            raise InterruptedError
        self._tell(count)


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """Compute on so many threads, and then on as many as before; a thread that sets its own sets that of later ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
