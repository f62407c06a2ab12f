"""Errors that are kept: every case of a pair or state reports the same one, and none keeps a model's memory alive."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from parity.errors import ModelFailed, ParityError

_INSIDE = (Path(torch.__file__).parent, Path(__file__).parent)
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
_LONGEST, _TOLD = 200, 300
"""Characters that are shown of what a model raised, and that its `ModelFailed` repeats."""


def kept(error: Exception, doing: str) -> ParityError:
    """Return an error to keep: without frames, which would hold activations, and with the place a model raised at.

    Args:
        error: what was raised.
        doing: in words what was being done, for errors that are nobody's on purpose.
    """
    cause = error.__cause__ if isinstance(error, ParityError) else error
    if is_out_of_memory(error) or (cause is not None and is_out_of_memory(cause)):
        return _out_of_memory(error, doing)
    if not isinstance(error, ParityError):
        return ModelFailed("\n".join([f"{doing}: {type(error).__name__}: {_shortened(str(error))}", *_place(error)]))
    if cause is None or not isinstance(error, ModelFailed):
        return bare(error)
    told = str(cause)[:_TOLD]
    first, *more = (str(error).replace(told, _shortened(told)) if told else str(error)).splitlines()
    return ModelFailed("\n".join([first, *_place(cause), *more[:2]]))


def bare(error: ParityError) -> ParityError:
    """Return the error without what it was raised from, ready to be raised again and again."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: on a GPU, on the CPU (a plain RuntimeError), or in Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY)


def _out_of_memory(error: Exception, doing: str) -> ModelFailed:
    text = _shortened(str(error) or type(error).__name__)
    advice = "take a smaller input, a smaller --parity-size, fewer --parity-twins, or --parity-device cpu"
    return ModelFailed(f"out of memory: {doing}: {text}\n{advice}")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 4] + " ..."


def _place(error: BaseException) -> list[str]:
    """Name the innermost line of code that is neither torch's nor this package's; nothing where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not any(root in Path(f.filename).parents for root in _INSIDE)]
    if not theirs:
        return []
    last = theirs[-1]
    return [f"raised at {_near(Path(last.filename))}:{last.lineno} in {last.name}"]


def _near(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)
