"""Measure what was found: on one thread beside the search, then on the caller's too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import torch

from parity.weights.matching.exact import Measurer
from parity.weights.matching.lines import Assignment, Part
from parity.weights.source import ElementSource

Metrics = dict[str, float]
THREADS = 2
"""The searching thread and the one beside it. More would wait for each other: between reads and sums that release the
interpreter lie short steps that do not."""


class Task:
    """One part to be measured."""

    def __init__(self, key: str, found: Assignment, part: Part) -> None:
        self._what, self._result = (key, found, part), Future[Metrics]()

    def run(self, measurer: Measurer) -> None:
        """Measure it, or keep what went wrong for whoever asks."""
        try:
            self._result.set_result(measurer.measure(*self._what))
        except BaseException as error:
            self._result.set_exception(error)
            if threading.current_thread() is threading.main_thread() and not isinstance(error, Exception):
                raise  # Ctrl-C

    @property
    def done(self) -> bool:
        """Whether it is measured."""
        return self._result.done()

    def result(self) -> Metrics:
        """Wait for the numbers."""
        return self._result.result()


class Measuring:
    """Measures what is handed to it, beside the search for more; a context, at whose end open work is dropped.

    Args:
        reference, native: both checkpoints.
        tell: called with the bytes compared, by any thread.
        most: bytes of columns that may be kept, by all threads together.
    """

    def __init__(
        self, reference: ElementSource, native: ElementSource, tell: Callable[[int], None], most: int
    ) -> None:
        self._sources, self._tell, self._most = (reference, native), tell, most // THREADS
        self._stopped = threading.Event()
        self._mine = Measurer(*self._sources, tell, self._most)
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._beside = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Measuring:
        self._beside.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._tasks.put(None)
        self._beside.join()

    def submit(self, key: str, found: Assignment, part: Part) -> Task:
        """Hand a part over."""
        task = Task(key, found, part)
        self._tasks.put(task)
        return task

    def result(self, task: Task) -> Metrics:
        """Return the numbers of a part; until they are there the caller measures others."""
        while not task.done:
            try:
                other = self._tasks.get_nowait()
            except Empty:
                break
            if other is not None:
                other.run(self._mine)
        return task.result()

    def _work(self) -> None:
        torch.set_num_threads(1)
        measurer = Measurer(*self._sources, self._told, self._most)
        while (task := self._tasks.get()) is not None and not self._stopped.is_set():
            task.run(measurer)

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
