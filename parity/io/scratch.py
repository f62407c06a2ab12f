"""Folders that go when their context ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for files that are handed to another process."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        yield Path(folder)
