"""The file of accepted states: strict JSON with a digest, replaced at once or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parity.errors import RecordError
from parity.gate.baseline import Baseline
from parity.gate.plain import from_plain, to_plain
from parity.io.atomic import locked
from parity.io.records import Kind, as_written, read_record, write_record

BASELINE = Kind("dit-parity-baseline", 1, "parity baseline")
_MOST_BYTES = 64 << 20


def read_baseline(path: str | Path) -> Baseline:
    """Read accepted states.

    Raises:
        RecordError: the file is missing, truncated, edited, foreign, too large, or of another schema version.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise RecordError(f"{path} is no {BASELINE.what}: it is larger than {_MOST_BYTES >> 20} MB")
    try:
        plain = read_record(path, BASELINE)
    except RecordError as error:
        raise RecordError(_worded(str(error))) from error
    with as_written(path, BASELINE):
        return from_plain(plain)


def _worded(text: str) -> str:
    """Give the way out of a baseline's error: it is in version control, and made from a run."""
    first = text.splitlines()[0]
    return f"{first}\ntake it back from version control, or make it again: parity baseline accept RUN.json -o FILE"


def change_baseline(path: str | Path, change: Callable[[Baseline], Baseline]) -> Path:
    """Replace accepted states by what a function makes of them; where there is no file it gets an empty one.

    Raises:
        RecordError: another process writes it now, it cannot be read or written; what was there is untouched.
    """
    path = Path(path)
    try:
        with locked(path):
            before = read_baseline(path) if path.exists() else Baseline()
            return write_record(path, to_plain(change(before)), BASELINE)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror or error}; what was there is untouched"
        raise RecordError(text) from error
