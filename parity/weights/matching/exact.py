"""Exact numbers for what was found: every native element once against its reference, in chunks compared as read.

Letters in shapes: n lines, L length of a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.lines import Assignment, Part, Turn, is_quantised
from parity.weights.matching.moments import Moments, all_numbers, room, same_bytes
from parity.weights.matching.rows import Ints, Rows, runs_of
from parity.weights.source import ElementSource

_CHUNK = 1 << 18
"""Elements that are gathered at once."""
_BYTES = 1 << 21
"""Bytes of a run read at once: little enough for the processor's caches, and so much that threads, which hold the
interpreter between reads and sums, seldom wait for each other."""
_TURNED = 64
"""Columns that are turned into rows at once at least: fewer would use a part only of what the processor fetches."""
_RUN = 1 << 14
"""Elements of a run from which it is read by itself, not gathered with others."""
Pair = tuple[Tensor, Tensor]
Span = tuple[int, int, int]
"""Where a run of elements begins in the reference and in the native, and how long it is."""


class Measurer:
    """Measures parts of native tensors against the references they come from; of one thread, for its buffers.

    Args:
        reference, native: both checkpoints.
        tell: called with the bytes compared.
        most: bytes of columns that may be kept.
    """

    def __init__(
        self, reference: ElementSource, native: ElementSource, tell: Callable[[int], None], most: int
    ) -> None:
        self._rows, self._tell = (Rows(reference), Rows(native)), tell
        self._strips: dict[int, tuple[str, Ints, Tensor]] = {}
        self._most = most
        self._wide = room()

    def measure(self, key: str, found: Assignment, part: Part) -> dict[str, float]:
        """Return the metrics of one part of a native tensor, NaN where it holds a NaN or inf."""
        pairs = self._pairs(key, found, part)
        same, first = 0, None
        for first in pairs:
            if not (same_bytes(*first) and all_numbers(first[0])):
                break
            same, first = same + 1, None
        if first is None:
            return {"cosine": 1.0, "pearson": 1.0, "rel_l2": 0.0}
        moments, scaled = Moments(self._wide), self._scaled(key, part)
        for expected, actual in chain([first], pairs, islice(self._pairs(key, found, part), same)):
            moments.add(expected, _fitted(expected, actual) if scaled else actual)
        return moments.metrics()

    def _scaled(self, key: str, part: Part) -> bool:
        """Whether the native's rows are stored with scales of their own, and the reference's not."""
        return is_quantised(self._rows[1].info(key)[2]) and not is_quantised(self._rows[0].info(part.key)[2])

    def _pairs(self, key: str, found: Assignment, part: Part) -> Iterator[Pair]:
        """Yield chunks of paired values, valid until the next. Shapes: [n, L] both, or [n] where rows do not matter."""
        itemsizes = self._rows[0].info(part.key)[2].itemsize + self._rows[1].info(key)[2].itemsize
        spans = None if self._scaled(key, part) else self._spans(key, found, part)
        if spans is not None:
            pairs = self._in_runs(key, part.key, spans)
        elif part.turn is not None:
            pairs = self._turned(key, part, part.turn)
        elif found.reshape:
            pairs = self._same_elements(key, part)
        elif found.axis == part.axis == 1:
            pairs = self._columns(key, part)
        else:
            pairs = self._lines(key, found.axis, part)
        for expected, actual in pairs:
            yield expected, actual
            self._tell(expected.numel() * itemsizes)

    def _spans(self, key: str, found: Assignment, part: Part) -> list[Span] | None:
        """Return the runs of elements that lie in the same order on both sides; None where they are short."""
        (their_rows, theirs, _), (rows, columns, _) = self._rows[0].info(part.key), self._rows[1].info(key)
        if found.reshape:
            return None if part.turn is not None else [(0, 0, rows * columns)]
        along = columns if found.axis == part.axis == 0 else 1 if their_rows == rows == 1 else 0
        if not along or (along > 1 and theirs != columns):
            return None
        breaks = np.flatnonzero((np.diff(part.native) != 1) | (np.diff(part.reference) != 1)) + 1
        if len(breaks) and len(part.native) * along < _RUN * (len(breaks) + 1):
            return None
        bounds = pairwise([0, *breaks.tolist(), len(part.native)])
        return [(int(part.reference[a]) * along, int(part.native[a]) * along, (b - a) * along) for a, b in bounds]

    def _in_runs(self, key: str, reference: str, spans: Sequence[Span]) -> Iterator[Pair]:
        step = _BYTES // max(self._rows[0].info(reference)[2].itemsize, self._rows[1].info(key)[2].itemsize)
        for there, at, count in spans:
            for start in range(0, count, step):
                stop = min(start + step, count)
                yield (self._rows[0].elements(reference, there + start, there + stop),
                       self._rows[1].elements(key, at + start, at + stop))  # fmt: skip

    def _same_elements(self, key: str, part: Part) -> Iterator[Pair]:
        rows, columns, _ = self._rows[1].info(key)
        step = max(_CHUNK // max(columns, 1), 1)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            expected = self._rows[0].stored(part.key, start, stop, columns)
            yield expected, self._rows[1].stored(key, start, stop, columns)

    def _turned(self, key: str, part: Part, turn: Turn) -> Iterator[Pair]:
        """Yield runs of elements of the whole tensor in the order the native has them."""
        rows, columns, _ = self._rows[0].info(part.key)
        whole = self._rows[0].elements(part.key, 0, rows * columns).clone()
        plain = whole.view(torch.uint8) if whole.element_size() == 1 else whole
        values = plain.view(turn[0]).permute(turn[1]).reshape(-1).view(whole.dtype)
        for start in range(0, len(values), _CHUNK):
            stop = min(start + _CHUNK, len(values))
            yield values[start:stop], self._rows[1].elements(key, start, stop)

    def _columns(self, key: str, part: Part) -> Iterator[Pair]:
        """Yield rows of both sides with the columns paired."""
        rows, columns, _ = self._rows[1].info(key)
        theirs = self._rows[0].info(part.key)[1]
        step = max(_CHUNK // max(columns, theirs), 1)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            expected = self._rows[0].stored(part.key, start, stop, theirs)
            actual = self._rows[1].stored(key, start, stop, columns)
            yield _selected(expected, part.reference, 1), _selected(actual, part.native, 1)

    def _lines(self, key: str, axis: int, part: Part) -> Iterator[Pair]:
        """Yield lines of which at least one side's are rows; columns come from strips as wide as memory allows."""
        rows, columns, dtype = self._rows[1].info(key)
        length = rows if axis else columns
        strip = max(self._most // max(length * max(dtype.itemsize, self._rows[0].info(part.key)[2].itemsize), 1), 1)
        step = min(max(_CHUNK // max(length, 1), _TURNED), max(strip // 4, 1))
        for first in range(0, len(part.native), strip):
            at, there = part.native[first : first + strip], part.reference[first : first + strip]
            for start in range(0, len(at), step):
                some = slice(start, start + step)
                yield self._taken(0, part.key, part.axis, there, some), self._taken(1, key, axis, at, some)

    def _taken(self, side: int, key: str, axis: int, lines: Ints, some: slice) -> Tensor:
        """Return some of the lines as they are stored; columns from a strip of them, the last of which is kept."""
        if axis == 0:
            return self._gathered(self._rows[side], key, lines[some], self._rows[side].info(key)[1])
        held, strip = self._strip(side, key, lines)
        chosen = np.arange(len(lines))[some] if held is lines else lines[some]
        return _selected(strip, chosen, 1).contiguous().t().contiguous()  # two plain copies beat one across

    def _strip(self, side: int, key: str, lines: Ints) -> tuple[Ints, Tensor]:
        """Return columns of a tensor in memory, and which: all where there is room for them, else `lines` itself."""
        rows, columns, dtype = self._rows[side].info(key)
        wanted = np.arange(columns) if rows * columns * dtype.itemsize <= self._most else lines
        held = self._strips.get(side)
        if held is None or held[0] != key or not np.array_equal(held[1], wanted):
            self._strips.pop(side, None)
            held = self._strips[side] = key, wanted, self._read_strip(self._rows[side], key, wanted)
        return wanted, held[2]

    def _read_strip(self, rows: Rows, key: str, wanted: Ints) -> Tensor:
        count, columns, _ = rows.info(key)
        step = max(_CHUNK // max(columns, 1), 1)
        out: Tensor | None = None
        for start in range(0, count, step):
            read = _selected(rows.stored(key, start, min(start + step, count), columns), wanted, 1)
            out = torch.empty(count, len(wanted), dtype=read.dtype) if out is None else out
            out[start : start + len(read)] = read
        assert out is not None
        return out

    def _gathered(self, rows: Rows, key: str, lines: Ints, columns: int) -> Tensor:
        """Return rows in any order, read in runs of their own order."""
        ordered, places = np.unique(lines, return_inverse=True)
        runs = list(runs_of(ordered))
        if len(runs) == 1:
            read = rows.stored(key, int(ordered[0]), int(ordered[-1]) + 1, columns)
        else:
            parts = [rows.stored(key, int(ordered[a]), int(ordered[b - 1]) + 1, columns).clone() for a, b in runs]
            read = torch.cat(parts)
        return _selected(read, places, 0)


def _selected(values: Tensor, lines: Ints, axis: int) -> Tensor:
    """Return lines of a matrix; a view where they follow each other."""
    if len(lines) and int(lines[-1]) - int(lines[0]) == len(lines) - 1 and bool((np.diff(lines) == 1).all()):
        return values.narrow(axis, int(lines[0]), len(lines))
    plain = values.view(torch.uint8) if values.element_size() == 1 else values
    return plain.index_select(axis, torch.from_numpy(lines)).view(values.dtype)


def _fitted(expected: Tensor, actual: Tensor) -> Tensor:
    """Return quantised rows, each by the scale that fits best. Shapes: [n, L]."""
    e, a = expected.double(), actual.double()
    return a * ((e * a).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True).clamp_min(1e-300))
