"""Errors of the package: each says what was given, what is valid and the way out, in five lines at most."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ParityError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(ParityError):
    """What was asked for does not exist or cannot be combined."""

    @classmethod
    def unknown(cls, what: str, given: str, valid: Iterable[str]) -> UsageError:
        """Word an unknown name with the nearest valid spelling.

        >>> print(UsageError.unknown("pair", "longcta", ["longcat", "wan"]))
        unknown pair 'longcta'
        valid: longcat, wan
        did you mean 'longcat'?
        """
        names = sorted(set(valid))
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
        near = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
        lines = [f"unknown {what} {given!r}", f"valid: {shown or 'none'}"]
        if near:
            lines.append(f"did you mean {near[0]!r}?")
        return cls("\n".join(lines))


class SourceMissing(ParityError):
    """Third-party code a pair needs is not on this machine; the message ends with the command that gets it."""


class WrongSource(ParityError):
    """A module was imported from another place than the one declared."""


class TapError(ParityError):
    """A tap names a module, element or call that does not exist, or a layout that does not fit."""


class NotReached(TapError):
    """A forward of a side never came by some of its taps.

    Attributes:
        side: "reference" or "native". taps: their names.
        variant: the kind of inputs, where who raised it knows.
    """

    def __init__(self, message: str, side: str, taps: tuple[str, ...]) -> None:
        super().__init__(message)
        self.side, self.taps = side, taps
        self.variant: str | None = None


class KeyMapError(ParityError):
    """A key map does not account for every tensor of both sides, or its shapes do not fit."""


class LoraError(ParityError):
    """A LoRA adapter touches no layer, or does not fit the model it is applied to."""


class LoraFileError(LoraError):
    """A LoRA file cannot be read, or cannot become what was asked for; `code` names the problem for scripts."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def details(self) -> dict[str, str]:
        """What `--json` says beyond the message."""
        return {"code": self.code}


class ModelFailed(ParityError):
    """A model raised, or ran out of memory, while it was built or called."""


class ShadowError(ParityError):
    """The shadow contract is broken: an observer effect or a silent loss."""


class RecordError(ParityError):
    """A record file is unreadable, of another schema, or being written by another run."""


class CheckpointError(ParityError):
    """A checkpoint is damaged, its header lies, or it holds what is not read for safety."""
