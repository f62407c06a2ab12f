"""The reference's part of a verdict, read from a recording: here or in another environment, its model is not needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.errors import RecordError
from parity.execution.storage import bits
from parity.execution.tap import Tap
from parity.execution.trace import Trace
from parity.identity import asked_for, check_inputs, check_same
from parity.io.recording import RECORDING, RecordingFolder
from parity.io.records import as_written
from parity.io.shards import dtype_of
from parity.io.tree import printable
from parity.lora.adapter import FullChange, LoraAdapter, LoraTarget
from parity.numerics.metrics import ClassicMetrics
from parity.pair import Build, ModelPair, in_variant
from parity.stage import Ask, Compiled, DrawOf, Dtypes, LockstepPasses, Nudge, Options, Question, T, placed

AtWork = Callable[[DrawOf, Callable[[Any], Any]], Any]


class OtherDtypes(RecordError):
    """The recording was made for a native of other dtypes.

    Attributes:
        native_dtypes: what the reference must be recorded for.
    """

    def __init__(self, text: str, native_dtypes: dict[str, torch.dtype]) -> None:
        super().__init__(text)
        self.native_dtypes = native_dtypes
        self.details = {"native_dtypes": {n: str(d).removeprefix("torch.") for n, d in native_dtypes.items()}}


class Recorded:
    """A recorded reference.

    Args:
        folder: the recording.
        pair: the pair it must be of.
        build: what is built.
        options: how it is run.
        work: does some work on the reference, loaded again, where that can be here.
        ask: puts questions to the interpreter in which the reference can be loaded.
        let_go: lets go of the reference that was loaded again.
        kept: where it is from, as a record says: "recording", made elsewhere, or "cache", made by this project's runs.

    Raises:
        RecordError: the recording is incomplete, damaged, or of something else; names the field.
    """

    def __init__(
        self, folder: Path, pair: ModelPair, build: Build, options: Options, *, work: AtWork | None = None,
        ask: Ask | None = None, let_go: Callable[[], None] = lambda: None, kept: str = "recording",
    ) -> None:  # fmt: skip
        self.folder, self._work, self._ask, self._kept = RecordingFolder(folder), work, ask, kept
        self.let_go = let_go
        self._device = build.device
        self._manifest = self.folder.manifest()
        self.identity: dict[str, Any] = self._manifest["identity"]
        self._pair, self._build = pair, build
        check_same(asked_for(pair, build, options, pair.taps(build), "reference"), self.identity, str(folder))
        with as_written(folder, RECORDING):
            self._assumed = {str(n): dtype_of(d) for n, d in self.identity["native_dtypes"].items()}

    @property
    def about(self) -> Mapping[str, Any]:
        """What a record keeps of the reference."""
        with as_written(self.folder.path, RECORDING):
            found = printable(self._manifest["about"])
            lists = {name: list(found[name]) for name in ("substitutes", "blind_spots", "classes")}
            return {"side": dict(found["side"]), **lists}

    @property
    def came_from(self) -> dict[str, Any]:
        """Where the reference's passes are from, their size in bytes, and the versions they were made with."""
        with as_written(self.folder.path, RECORDING):
            made_with = {str(n): str(v) for n, v in printable(self._manifest["made_with"]).items()}
        return {"kept": self._kept, "bytes": self.folder.bytes_of(), **made_with}

    @property
    def has_tables(self) -> bool:
        """Whether exact values of tables were known."""
        return bool(self._manifest["has_tables"])

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters and persistent buffers by key, read when asked for."""
        return self.folder.tensors("weights")[0]

    @property
    def lora_found(self) -> Mapping[str, Any]:
        """What the reference made of the LoRA's layers, where it was recorded with it."""
        with as_written(self.folder.path, RECORDING):
            return dict(printable(self._manifest.get("lora", {})))

    @cached_property
    def adapter(self) -> LoraAdapter | None:
        """The LoRA in the reference's module names."""
        if self.identity["lora"] is None:
            return None
        tensors, note = self.folder.tensors("lora")
        with as_written(self.folder.below("lora"), RECORDING):
            return self._adapter(tensors, note)

    def _adapter(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> LoraAdapter:
        def of(path: str, scaling: float, origin: str, embedding: bool = False) -> LoraTarget:
            a, b = (tensors[f"{path}#{n}"].to(self._device) for n in "AB")
            held = (tensors.get(f"{path}#{name}") for name in ("magnitude", "bias"))
            magnitude, bias = (None if value is None else value.to(self._device) for value in held)
            return LoraTarget(a, b, float(scaling), str(origin), magnitude, bias, bool(embedding))

        full = {name: tensors[f"{name}#full"].to(self._device) for name in note.get("changes", {})}
        changes = {name: FullChange(value, bool(note["changes"][name])) for name, value in full.items()}
        return LoraAdapter(note["name"], {path: of(path, *held) for path, held in note["targets"].items()}, changes)

    def _draw(self, draw: DrawOf) -> Mapping[str, Any]:
        draws = self._manifest["draws"]
        if draw.name not in draws:
            text = f"{self.folder.path} has no draw {draw.name!r}, it has {', '.join(list(draws)[:6])}"
            raise RecordError(f"{text}\nrecord that LoRA state, variant and seed too: parity record ... --resume")
        found: Mapping[str, Any] = draws[draw.name]
        return found

    def given(self, draw: DrawOf) -> DrawOf:
        """Return the draw with the inputs that were recorded, which must be those the pair draws."""
        held = self._draw(draw)
        if not self.identity.get("from_call"):
            with as_written(self.folder.path, RECORDING):
                check_inputs(draw, held["inputs"], str(self.folder.path))
        inputs = placed(self.folder.inputs(draw.name), self._device)
        return DrawOf(draw.lora, draw.seed, draw.options, inputs)

    def _trace(self, draw: DrawOf, name: str) -> Trace:
        return self.folder.stored(draw.name, name, self._device).trace()

    def learn_constants(self, draw: DrawOf) -> None:
        """Nothing: it was done when the reference was recorded."""

    def without_lora(self, draw: DrawOf) -> Trace:
        """Return the free-running pass without the LoRA."""
        return self._trace(draw, "baseline")

    def free(self, draw: DrawOf) -> Trace:
        """Return the free-running pass."""
        return self._trace(draw, "free")

    def compiled(self, draw: DrawOf) -> Compiled | None:
        """Return how the output of compiled parts compares with eager's."""
        with as_written(self.folder.path, RECORDING):
            return compiled_from(self._draw(draw)["compiled"])

    def lockstep(self, draw: DrawOf, native: Dtypes) -> LockstepPasses:
        """Return the shadowed passes.

        Raises:
            OtherDtypes: they were recorded in lockstep with a native of other dtypes.
        """
        trace = self._trace(draw, "lockstep")
        self._check_dtypes(in_variant(self._pair, draw.options.variant).taps(self._build), trace, native)
        twins = [self._trace(draw, f"twin{k}") for k in range(draw.options.twins)]
        with as_written(self.folder.path, RECORDING):
            return LockstepPasses(trace, twins, [str(where) for where in printable(self._draw(draw)["observer"])])

    def as_stored(self, draw: DrawOf, native: Dtypes) -> Trace:
        """Return the pass in which remembered tables have their stored values."""
        return self._trace(draw, "as_stored" if self.has_tables else "lockstep")

    def impacts(self, draw: DrawOf, requests: Sequence[Sequence[Nudge]]) -> list[float] | None:
        """Propagate errors through the reference where its model can be loaded; None where it cannot."""
        if self._work is not None:
            found: list[float] = self._work(draw, lambda live: live.impacts(draw, requests))
            return found
        deltas = {nudge.tap.name: nudge.delta for nudges in requests for nudge in nudges}
        note = {"requests": [[nudge.tap.name for nudge in nudges] for nudges in requests]}
        answer = self.asked(Question("impact", draw, note, deltas))
        return None if answer is None else [float(value) for value in answer["impacts"]]

    @property
    def is_loaded_again(self) -> bool:
        """Whether the model can be loaded here, for what a recording does not answer."""
        return self._work is not None

    def at_work(self, draw: DrawOf, work: Callable[[Any], T]) -> T | None:
        """Do some work on the reference's model where it can be loaded here; None where it cannot."""
        return None if self._work is None else self._work(draw, work)

    def asked(self, question: Question) -> Mapping[str, Any] | None:
        """Ask the interpreter in which the reference can be loaded; None: there is none."""
        return None if self._ask is None else self._ask(question)

    def recorded_ops(self, draw: DrawOf) -> Mapping[str, Any] | None:
        """Return the ops of the lockstep pass; None: they were not recorded."""
        return self.folder.ops(draw.name)

    def _check_dtypes(self, taps: Sequence[Tap], trace: Trace, native: Dtypes) -> None:
        wanted = coarser(taps, trace, native)
        held = coarser(taps, trace, self._assumed)
        if wanted == held:
            return
        name = next(n for n in (*wanted, *held) if wanted.get(n) != held.get(n))
        theirs = str(wanted.get(name, native.get(name, trace.values[name].dtype))).removeprefix("torch.")
        raise OtherDtypes(
            f"{self.folder.path} was not recorded for a native that has {name} in {theirs}\n"
            "both sides must go on from one number there; record the reference again, in its environment, with\n"
            + _as_options(taps, wanted),
            wanted,
        )


def coarser(taps: Sequence[Tap], trace: Trace, native: Dtypes) -> dict[str, torch.dtype]:
    """Return where, and to what, the reference must round before both sides go on."""
    found = {}
    for tap in taps:
        other = native.get(tap.name)
        if other is None or not tap.restarts or tap.native is None or tap.reference is None:
            continue
        mine = trace.values[tap.name].dtype
        if mine.is_floating_point and bits(other) < bits(mine):
            found[tap.name] = other
    return found


def _as_options(taps: Sequence[Tap], dtypes: Mapping[str, torch.dtype]) -> str:
    """Word dtypes as options of `parity record`, by kind of tap where all of a kind agree."""
    kinds = {t.kind: {dtypes.get(o.name) for o in taps if o.kind == t.kind} for t in taps}
    words = {}
    for tap in taps:
        if tap.name in dtypes:
            name = tap.kind if len(kinds[tap.kind]) == 1 else tap.name
            words[name] = f"--native-dtype {name}={str(dtypes[tap.name]).removeprefix('torch.')}"
    return " ".join(words.values()) or "no --native-dtype"


def compiled_from(held: Mapping[str, Any] | None) -> Compiled | None:
    """Return the comparison of compiled and eager as it was recorded."""
    if held is None:
        return None
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in held["metrics"].items()}
    return Compiled(ClassicMetrics(**fields), float(held["excess"]))
