"""Impacts of a native's errors, computed in the reference's environment: its interpreter runs `parity impact`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parity.errors import ParityError, UsageError
from parity.identity import check_same
from parity.io.recording import RecordingFolder
from parity.io.scratch import scratch_folder
from parity.pair import Build, ModelPair
from parity.recorder import Plan, ReferenceAtWork, placed
from parity.stage import DrawOf, Nudge, Options


@dataclass(frozen=True)
class Interpreter:
    """The interpreter a reference lives in.

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
        return self._answer(done, arguments[0])

    def _answer(self, done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            found = {}
        if done.returncode == 0 and found:
            return found
        if "No module named" in done.stderr and "parity" in done.stderr:
            raise UsageError(f"{self.python!r} has no parity\ninstall it: {self.python} -m pip install dit-parity")
        if "SyntaxError" in done.stderr or "requires a different Python" in done.stderr:
            raise UsageError(f"{self.python!r} is too old for parity, Python 3.10 or later is needed")
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, and nothing said"])[-1]
        raise StageFailed(f"`parity {name}` failed in {self.python!r}: {found.get('message', last)[:600]}", found)


class StageFailed(ParityError):
    """A command in another interpreter failed.

    Attributes:
        answer: what it said as JSON, if anything.
    """

    def __init__(self, text: str, answer: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.answer = dict(answer)


def propagate(
    interpreter: Interpreter, pair: ModelPair, recording: Path, draw: DrawOf, requests: Sequence[Sequence[Nudge]]
) -> list[float]:
    """Return the impacts of sets of nudges on a recorded reference.

    Raises:
        ParityError: the reference's interpreter is not usable, or the reference is no longer the one recorded.
    """
    with scratch_folder() as folder:
        deltas = {nudge.tap.name: nudge.delta for nudges in requests for nudge in nudges}
        note = {
            "draw": draw.name, "lora": draw.lora, "seed": draw.seed, "variant": draw.options.variant,
            "requests": [[nudge.tap.name for nudge in nudges] for nudges in requests],
        }  # fmt: skip
        RecordingFolder(folder).write_tensors("deltas", deltas, note)
        found = interpreter.run("impact", pair.name, "--recording", str(recording), "--request", str(folder))
    return [float(value) for value in found["impacts"]]


def answer(pair: ModelPair, recording: Path, request: Path) -> list[float]:
    """Answer a request in the reference's environment.

    Raises:
        RecordError: recording or request is damaged, or the reference is no longer the one recorded.
    """
    folder = RecordingFolder(recording)
    manifest = folder.manifest()
    identity = manifest["identity"]
    deltas, note = RecordingFolder(request).tensors("deltas")
    plan = _plan(pair, identity, manifest, note)
    at_work = ReferenceAtWork(plan)
    try:
        check_same(at_work.identity, identity, str(recording))
        inputs = placed(folder.inputs(note["draw"]), plan.build.device)
        taps = {tap.name: tap for tap in at_work.taps}
        nudges = {name: Nudge(taps[name], delta.to(plan.build.device)) for name, delta in deltas.items()}
        requests = [[nudges[name] for name in names] for names in note["requests"]]
        return at_work.impacts(DrawOf(note["lora"], note["seed"], plan.options, inputs), requests)
    finally:
        at_work.close()


def _plan(pair: ModelPair, identity: Mapping[str, Any], manifest: Mapping[str, Any], note: Mapping[str, Any]) -> Plan:
    build = Build(
        identity["size"], getattr(torch, identity["dtype"]), torch.device(identity["device"]), identity["weights_seed"]
    )
    options = Options(
        seed=note["seed"], twins=identity["twins"], shadow_dtype=getattr(torch, identity["shadow_dtype"]),
        variant=note["variant"],
    )  # fmt: skip
    dtypes = {name: getattr(torch, dtype) for name, dtype in identity["native_dtypes"].items()}
    return Plan(pair, build, options, ((note["lora"], note["variant"]),), dtypes)
