"""Row orders in few words: a view whose dims are exchanged, blocks in another order or repeated, or every row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from parity.errors import KeyMapError

Rows = npt.NDArray[np.int64]
_DIMS: dict[int, list[tuple[int, ...]]] = {2: [(1, 0)], 3: [(0, 2, 1), (1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)]}


def described(order: Sequence[int] | Rows, shape: Sequence[int] = ()) -> dict[str, Any] | None:
    """Return an order in few words; None where every row stays where it is. `shape` is a view to try first.

    >>> described([0, 2, 1, 3])
    {'view': [2, 2], 'dims': [1, 0]}
    >>> described([2, 3, 0, 1])
    {'blocks': 2, 'order': [1, 0]}
    >>> described([0, 1, 0, 1, 2, 3, 2, 3])
    {'repeat': 2, 'size': 2}
    """
    rows = np.asarray(order, dtype=np.int64)
    count = len(rows)
    if np.array_equal(rows, np.arange(count)):
        return None
    if not is_order(rows):
        return {"rows": rows.tolist()}
    if (times := count // (int(rows.max()) + 1)) > 1:
        size = int(np.flatnonzero(np.diff(rows) != 1)[0]) + 1
        same = count % (times * size) == 0 and np.array_equal(repeated(count, times, size), rows)
        return {"repeat": times, "size": size} if same else {"rows": rows.tolist()}
    for view, dims in (*_turns(tuple(shape), count), *_views(count, int(rows[1]))):
        if np.array_equal(_viewed(view, dims), rows):
            return {"view": list(view), "dims": list(dims)}
    size = _block(rows)
    if size > 1:
        return {"blocks": size, "order": (rows[::size] // size).tolist()}
    return {"rows": rows.tolist()}


def is_order(rows: Rows) -> bool:
    """Whether numbers are rows from 0 on, each as often as the others: once, or repeated."""
    numbers, times = np.unique(rows, return_counts=True)
    return bool(np.array_equal(numbers, np.arange(len(numbers))) and (times == times[:1]).all())


def repeated(count: int, times: int, size: int) -> Rows:
    """Return `count` rows of which every `size` occur `times` times in succession, as heads that share keys do.

    >>> repeated(8, 2, 2).tolist()
    [0, 1, 0, 1, 2, 3, 2, 3]
    """
    blocks: Rows = np.arange(count // times).reshape(-1, 1, size).repeat(times, axis=1)
    return blocks.reshape(-1)


def order_from(words: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """Return the order of `count` rows that the words describe.

    Raises:
        KeyMapError: they describe none, or one of another number of rows.
    """
    try:
        rows = _from(words, count)
    except (KeyError, TypeError, ValueError) as error:
        valid = "view and dims, blocks and order, repeat and size, or rows"
        raise KeyMapError(f"{str(words)[:80]} is no order; valid: {valid}") from error
    if len(rows) != count or not is_order(rows):
        raise KeyMapError(f"{str(words)[:80]} is no order of {count} rows")
    return tuple(rows.tolist())


def _from(words: Mapping[str, Any], count: int) -> Rows:
    if "repeat" in words:
        times, size = int(words["repeat"]), int(words["size"])
        if min(times, size) < 1 or count % (times * size):
            raise ValueError("does not divide the rows")
        return repeated(count, times, size)
    if "view" in words:
        view, dims = [int(n) for n in words["view"]], [int(n) for n in words["dims"]]
        if math.prod(view) > 1 << 24:
            raise ValueError("too large")
        return _viewed(tuple(view), tuple(dims))
    if "blocks" in words:
        size, blocks = int(words["blocks"]), np.asarray(words["order"], dtype=np.int64)
        if size * len(blocks) > 1 << 24:
            raise ValueError("too large")
        return np.asarray((blocks[:, None] * size + np.arange(size)).reshape(-1), dtype=np.int64)
    return np.asarray(words["rows"], dtype=np.int64).reshape(-1)


def _viewed(view: tuple[int, ...], dims: tuple[int, ...]) -> Rows:
    rows: Rows = np.arange(math.prod(view)).reshape(view).transpose(dims).reshape(-1)
    return rows


def _turns(shape: tuple[int, ...], count: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield a view and every exchange of its dims."""
    if math.prod(shape) == count:
        yield from ((shape, dims) for dims in permutations(range(len(shape))))


def _views(count: int, second: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield views of `count` rows whose exchange of dims puts row `second` at place 1."""
    divisors = [n for n in range(2, count) if count % n == 0]
    shapes: list[tuple[int, ...]] = [(a, count // a) for a in divisors]
    shapes += [(a, b, count // (a * b)) for a in divisors for b in divisors if count % (a * b) == 0 and a * b < count]
    for view in shapes:
        strides = [math.prod(view[i + 1 :]) for i in range(len(view))]
        for dims in _DIMS[len(view)]:
            if strides[dims[-1]] == second or view[dims[-1]] == 1:
                yield view, dims


def _block(rows: Rows) -> int:
    """Return the size of the largest blocks of consecutive rows the order moves as wholes."""
    starts = np.flatnonzero(np.diff(rows) != 1) + 1
    size = math.gcd(len(rows), *(int(n) for n in starts))
    return size if bool((rows[::size] % size == 0).all()) else 1
