"""Questions to another interpreter, in which one side's model can be loaded: its `parity` command answers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from parity.errors import ParityError, UsageError
from parity.io.recording import RecordingFolder
from parity.io.scratch import scratch_folder
from parity.io.tree import printable
from parity.pair import ModelPair
from parity.stage import Question


@dataclass(frozen=True)
class Interpreter:
    """The interpreter a side lives in.

    Args:
        python: its command. pairs: folders of pair files, where the project's configuration does not say.
    """

    python: str
    pairs: tuple[Path, ...] = ()

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a `parity` command there and return its JSON.

        Raises:
            UsageError: the interpreter is missing, too old, or has no parity.
            ParityError: the command failed; its own words are in the error.
        """
        folders = [word for folder in self.pairs for word in ("--pairs", str(folder))]
        command = [self.python, "-m", "parity", *arguments, *folders]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UsageError(f"the interpreter {self.python!r} cannot be run: {error.strerror}") from error
        return self.answer_of(done.returncode, done.stdout, done.stderr, arguments[0])

    def answer_of(self, code: int, said: str, complained: str, name: str) -> dict[str, Any]:
        """Return the JSON among what a command said.

        Raises:
            UsageError: the interpreter is too old, or has no parity or an older one.
            StageFailed: the command failed.
        """
        found = _json_in(said)
        if code == 0 and found:
            return found
        if not found:
            self._check_usable(complained)
        raise StageFailed(f"`parity {name}` failed in {self.python!r}: {_why(code, found, said, complained)}", found)

    def _check_usable(self, complained: str) -> None:
        if re.search(r"No module named '?parity\b", complained):
            raise UsageError(f"{self.python!r} has no parity\ninstall it: {self.python} -m pip install dit-parity")
        if any(sign in complained for sign in _TOO_OLD):
            raise UsageError(f"{self.python!r} is too old for parity, Python 3.10 or later is needed")
        if "No such command" in complained:
            text = f"{self.python!r} has an older parity"
            raise UsageError(f"{text}\nupdate it: {self.python} -m pip install --upgrade dit-parity")


_TOO_OLD = ("SyntaxError", "requires a different Python", "unsupported operand type(s) for |")
"""What an interpreter says that does not know this package's language."""


def _json_in(said: str) -> dict[str, Any]:
    """Return the JSON object a command's output ends with; models print as they load."""
    starts = [0, *(match.start() + 1 for match in re.finditer(r"\n\{", said))]
    for start in reversed(starts):
        with suppress(json.JSONDecodeError, RecursionError):
            found = json.loads(said[start:])
            if isinstance(found, dict):
                return found
    return {}


def _why(code: int, found: Mapping[str, Any], said: str, complained: str) -> str:
    """Word why a command failed, in four lines at most."""
    if "message" in found:
        return "\n".join(printable(str(found["message"]).splitlines()[:4]))[:800]
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"it was ended by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    if code == 0:
        return f"it said nothing that can be read: {said.strip()[:80]!r}"
    last = complained.strip().splitlines()
    return str(printable(last[-1]))[:600] if last else f"exit code {code}, and nothing said"


class StageFailed(ParityError):
    """A command in another interpreter failed.

    Attributes:
        answer: what it said as JSON, if anything.
    """

    def __init__(self, text: str, answer: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.answer = dict(answer)


def ask(
    interpreter: Interpreter, pair: ModelPair, recordings: Sequence[Path], question: Question
) -> Mapping[str, Any]:
    """Put a question about recordings of a pair to the interpreter in which their model can be loaded.

    Args:
        interpreter: of the side that is asked.
        pair: the pair.
        recordings: the side's, then that it was made against, if any.
        question: what is asked.

    Raises:
        ParityError: the interpreter is not usable, or the side is no longer the one recorded.
    """
    draw = question.draw
    of = {"draw": draw.name, "lora": draw.lora, "seed": draw.seed, "variant": draw.options.variant}
    with scratch_folder() as folder:
        RecordingFolder(folder).write_tensors("asked", question.tensors, {**of, **question.note})
        where = [word for path in recordings for word in ("--recording", str(path))]
        answer = interpreter.run(question.what, pair.name, *where, "--request", str(folder))
        return {**answer, "tensors": tensors_of(folder)}


def tensors_of(request: Path) -> dict[str, Tensor]:
    """Return the tensors that were written beside a request as its answer, in memory; none where none were."""
    folder = RecordingFolder(request)
    held = folder.tensors("values")[0] if folder.has_tensors("values") else {}
    return {name: value.clone() for name, value in held.items()}
