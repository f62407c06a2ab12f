"""Files a command writes where its caller asked for them, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from parity.errors import UsageError
from parity.io.atomic import locked, write_atomic


def write_out(path: str | Path, text: str) -> Path:
    """Write text to the path a caller named, and nowhere else.

    Raises:
        UsageError: it cannot be written: no permission, a full disk, a folder or device of that name.
    """
    if Path(path).is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError(f"cannot write {path}: it is a device or a pipe, and a file would take its place; name a file")
    try:
        return write_atomic(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; what was there is untouched") from error


def write_alone(path: str | Path, text: str) -> Path:
    """Write text as `write_out` does, unless another process writes the same file now.

    Raises:
        RecordError: another process writes it; names it.
        UsageError: it cannot be written.
    """
    try:
        with locked(path):
            return write_out(path, text)
    except OSError as error:  # the folder cannot be made, or no lock in it
        raise UsageError(f"cannot write {path}: {error.strerror or error}; what was there is untouched") from error
