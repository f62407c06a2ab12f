"""Checkpoints opened lazily: safetensors by `pread`, pickles of weights by mmap; nothing in them is ever run."""

from parity.io.checkpoints.opened import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
