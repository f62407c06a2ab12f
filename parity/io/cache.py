"""A cache of recordings, held below a size: the one used longest ago goes first, one that a process uses never.

    CACHE/PAIR/KEY/            a recording
    CACHE/PAIR/KEY/.in_use     locked, shared, by every process that uses it; its time is that of the last use

The system drops a lock with its process, so a run that was killed uses nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parity.errors import RecordError

_MARK, _GONE = ".in_use", ".removed"
_RECORDED = ("manifest.json", "begun.json")


class Use:
    """An entry of a cache that this process uses from now on, until it leaves it or ends.

    Args:
        folder: the entry; made where it is not there.

    Raises:
        RecordError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._number = _opened(folder / _MARK, fcntl.LOCK_SH)
            os.utime(self._number)
        except OSError as error:
            raise RecordError(f"cannot write below {folder}: {error.strerror or error}") from error

    def leave(self) -> None:
        """Use it no more; once is enough."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


@dataclass(frozen=True)
class Entry:
    """A recording in a cache.

    Args:
        folder: where. bytes: on disk. used: when it was used last, in seconds of the clock.
    """

    folder: Path
    bytes: int
    used: float


def entries(cache: Path) -> list[Entry]:
    """List the recordings of a cache, the one used longest ago first; other folders are none of it."""
    found = [_entry(folder) for folder in cache.glob("*/*") if any((folder / name).exists() for name in _RECORDED)]
    return sorted(found, key=lambda e: (e.used, e.folder))


def shrink(cache: Path, limit: int) -> list[Path]:
    """Remove recordings until a cache is no larger than `limit` bytes, or all that is left is in use.

    Returns:
        What was removed.
    """
    for folder in cache.glob(f"*/.*{_GONE}"):  # of a removal that was cut short
        shutil.rmtree(folder, ignore_errors=True)
    held = entries(cache)
    size, removed = sum(entry.bytes for entry in held), []
    for entry in held:
        if size <= limit:
            break
        if _remove(entry.folder):
            size -= entry.bytes
            removed.append(entry.folder)
    return removed


def _entry(folder: Path) -> Entry:
    files = [status for file in folder.rglob("*") if (status := _status(file)) is not None]
    marks = (_status(folder / name) for name in (_MARK, *_RECORDED))
    used = next((status.st_mtime for status in marks if status is not None), 0.0)
    return Entry(folder, sum(status.st_size for status in files if stat.S_ISREG(status.st_mode)), used)


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a path; None of one that another process removes."""
    with suppress(OSError):
        return path.lstat()
    return None


def _remove(folder: Path) -> bool:
    """Remove an entry, unless a process uses it; it is out of the way before the first of its files goes."""
    try:
        number = _opened(folder / _MARK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or not ours to remove
        return False
    try:
        gone = folder.with_name(f".{folder.name}{_GONE}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(number)
    return True


def _opened(path: Path, how: int) -> int:
    """Open and lock a file, made where it is not there; again where it was removed between the two."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(number, how)
            if any(os.path.samestat(held, os.fstat(number)) for held in _there(path)):
                return number
        except OSError:
            os.close(number)
            raise
        os.close(number)


def _there(path: Path) -> Iterator[os.stat_result]:
    with suppress(FileNotFoundError):
        yield path.stat()
