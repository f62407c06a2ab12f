"""Write files whole or not at all, and keep two runs from writing the same one."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from parity.errors import RecordError

Content = bytes | Callable[[BinaryIO], object]


def write_atomic(path: str | Path, content: Content, *, durable: bool = True) -> Path:
    """Write bytes, or what a callable writes to the open file, so that a reader sees the old file or the new one.

    The temporary file lies in the same folder, is flushed to disk before it is renamed, and is removed after an error.

    Args:
        path: the file.
        content: what it is to hold.
        durable: wait for the disk. Not needed where a checksum kept elsewhere tells a file that a power cut took.

    Raises:
        OSError: the folder cannot be made or written; the old file is untouched.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put an interrupt (Ctrl-C) off until the block is left, so that what it writes is written.

    Only the main thread is interrupted; in another, and where a handler is not Python's, nothing is done.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def locked(path: str | Path, waiting: Callable[[str], object] | None = None) -> Iterator[Path]:
    """Hold the right to write `path`; yields the path.

    The system drops the lock with its process, so that of a dead run is taken over.

    Args:
        path: the file.
        waiting: told who holds it, then it is waited for; None: that is an error.

    Raises:
        RecordError: another run holds it; names its process, host and time.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    number = _acquire(lock, path, waiting)
    try:
        os.ftruncate(number, 0)
        os.pwrite(number, json.dumps(_holder()).encode(), 0)
        yield path
    finally:
        lock.unlink(missing_ok=True)
        os.close(number)


def _acquire(lock: Path, path: Path, waiting: Callable[[str], object] | None) -> int:
    """Open and lock the lock file; again where its holder removed it between opening and locking."""
    while True:
        number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = _described(number)
            if waiting is None:
                os.close(number)
                raise RecordError(f"{path.name} is being written by {text}\nwait for it, or write elsewhere") from error
            waiting(f"waiting for {text}, which writes {path.parent.name}/{path.name}")
            fcntl.flock(number, fcntl.LOCK_EX)
        if _is_still(lock, number):
            return number
        os.close(number)


def _is_still(lock: Path, number: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(lock.stat(), os.fstat(number))
    return False


def _holder() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _described(number: int) -> str:
    with suppress(ValueError, KeyError, TypeError):
        holder = json.loads(os.pread(number, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    return "another run that has not named itself yet"
