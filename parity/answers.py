"""What a side's own interpreter is asked about its recording: impacts, nearest variants, values of ops, repairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.candidates import Target
from parity.diagnose.faulty import Faulty
from parity.diagnose.held import HeldWeights
from parity.diagnose.names import name_wrong_weights
from parity.diagnose.recorded_ops import from_data, values_as_tensors, with_values
from parity.diagnose.repair import RepairShop
from parity.diagnose.search import search
from parity.diagnose.side_ops import side_ops
from parity.draws import dtypes_of, restart_of
from parity.errors import RecordError
from parity.execution.passes import FromReference, Restart, mask_of
from parity.identity import check_same
from parity.io.recording import RECORDING, RecordingFolder
from parity.io.records import as_written
from parity.io.shards import dtype_of
from parity.native_recorder import native_identity
from parity.pair import Build, ModelPair, in_variant
from parity.recorded import Recorded
from parity.recorder import Plan, ReferenceAtWork
from parity.run import planned_draws
from parity.session import PairSession
from parity.stage import DrawOf, Nudge, Options, placed


@dataclass(frozen=True)
class Asked:
    """A request, read and checked.

    Args:
        plan: what was recorded. draw: what it is about. note: plain data. tensors: named values, on the device.
    """

    plan: Plan
    draw: DrawOf
    note: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


Answer = Callable[[ModelPair, Sequence[Path], Path], dict[str, Any]]


def impact(pair: ModelPair, recordings: Sequence[Path], request: Path) -> dict[str, Any]:
    """Propagate errors through the reference.

    Raises:
        RecordError: recording or request is damaged, or the reference is no longer the one recorded.
    """
    with _reference(pair, recordings[0], request) as (at_work, asked):
        taps = {tap.name: tap for tap in in_variant(pair, asked.draw.options.variant).taps(asked.plan.build)}
        with as_written(request, RECORDING):
            nudges = {name: Nudge(taps[name], delta) for name, delta in asked.tensors.items()}
            requests = [[nudges[name] for name in names] for names in asked.note["requests"]]
        return {"impacts": at_work.working(asked.draw, lambda live: live.impacts(asked.draw, requests))}


def nearest(pair: ModelPair, recordings: Sequence[Path], request: Path) -> dict[str, Any]:
    """Search the nearest variants of the reference.

    Raises:
        RecordError: recording or request is damaged, or the reference is no longer the one recorded.
    """
    with _reference(pair, recordings[0], request) as (at_work, asked):
        draw, device = asked.draw, asked.plan.build.device
        base = RecordingFolder(recordings[0]).stored(draw.name, "lockstep", device).trace()
        taps = {tap.name: tap for tap in in_variant(pair, draw.options.variant).taps(asked.plan.build)}
        targets = []
        with as_written(request, RECORDING):
            low = dtype_of(asked.note["low"])
            for name, native in asked.tensors.items():
                tap = taps[name]
                valid = None if tap.valid is None else mask_of(tap, draw.inputs, base.values[name].low)
                wide = name in asked.note["wide"]
                targets.append(Target(name, native, valid, tap.has_attention, wide, tap.kind))
        dtypes = asked.plan.native_dtypes
        found = at_work.working(draw, lambda live: search(live, draw, base, targets, dtypes, low))
        return {"nearest": {name: variant.as_data() for name, variant in found.items()}}


def values(pair: ModelPair, recordings: Sequence[Path], request: Path) -> dict[str, Any]:
    """Write the exact values of the ops that taps of the reference are made of beside the request.

    Raises:
        RecordError: recording or request is damaged, or the reference is no longer the one recorded.
    """
    with _reference(pair, recordings[0], request) as (at_work, asked):
        with as_written(request, RECORDING):
            taps = [str(name) for name in asked.note["taps"]]
        restart = FromReference(asked.plan.native_dtypes, asked.draw.inputs)
        ops = at_work.working(asked.draw, lambda live: side_ops(live, asked.draw, restart, values_at=taps))
        held = values_as_tensors(ops)
        RecordingFolder(request).write_tensors("values", held)
        return {"values": len(held)}


def repair(pair: ModelPair, recordings: Sequence[Path], request: Path) -> dict[str, Any]:
    """Try to repair a recorded native; `recordings` are the native's and that of the reference it was made against.

    Raises:
        RecordError: a recording or the request is damaged, or the native is no longer the one recorded.
    """
    native, reference = recordings
    asked = _asked(pair, reference, request)
    recorded = Recorded(reference, pair, asked.plan.build, asked.plan.options)
    session = PairSession(pair, asked.plan.build, recorded)
    try:
        manifest = RecordingFolder(native).manifest()
        check_same(native_identity(session, asked.plan.options, recorded), manifest["identity"], str(native))
        with session.variant(asked.draw.options.variant), session.lora(asked.draw.lora):
            return _repaired(session, recorded, RecordingFolder(native), asked)
    finally:
        session.close()


ANSWERS: dict[str, Answer] = {"impact": impact, "nearest": nearest, "values": values, "repair": repair}
"""By the name of the command."""


def _repaired(session: PairSession, recorded: Recorded, folder: RecordingFolder, asked: Asked) -> dict[str, Any]:
    (draw,) = planned_draws(session, asked.draw.lora, replace(asked.draw.options, draws=1))
    live, device, note = session.native_stage, session.build.device, asked.note
    live.learn_constants(draw)
    free = folder.stored(draw.name, "free", device).trace()
    theirs = recorded.lockstep(draw, dtypes_of(free)).trace
    mine = folder.stored(draw.name, "lockstep", device).trace()

    def restart() -> Restart:
        return restart_of(session.taps, theirs, free, draw.inputs)

    with as_written(folder.path, RECORDING):
        held = recorded.recorded_ops(draw)
        if held is None:
            raise RecordError(f"{recorded.folder.path} has no ops of {draw.name}\nrecord it again with --resume")
        job = Faulty(draw, theirs, mine, note["before"], note["noise"], session.native_adapter if draw.lora else None)
        wanted = [str(name) for name in note["taps"]]
        ours = side_ops(live, draw, restart(), theirs.decisions, wanted)
        ops = ours, with_values(from_data(held), asked.tensors)
        shop = RepairShop(job, live, *ops, restart, float(note["limit"]), frozenset(note["wrong"]))
        found = shop.repairs([tap for tap in session.taps if tap.name in wanted])
        taps = [tap for tap in session.taps if tap.name in mine.values]
        names = name_wrong_weights(job, taps, note["read"], session.weights, HeldWeights(session))
    return {"repairs": {name: asdict(change) for name, change in found.items()}, "names": names}


@contextmanager
def _reference(pair: ModelPair, recording: Path, request: Path) -> Iterator[tuple[ReferenceAtWork, Asked]]:
    """Load the reference that was recorded."""
    asked = _asked(pair, recording, request)
    at_work = ReferenceAtWork(asked.plan)
    try:
        check_same(at_work.identity, RecordingFolder(recording).manifest()["identity"], str(recording))
        yield at_work, asked
    finally:
        at_work.close()


def _asked(pair: ModelPair, recording: Path, request: Path) -> Asked:
    """Read a request about a reference's recording."""
    folder = RecordingFolder(recording)
    identity = folder.manifest()["identity"]
    tensors, note = RecordingFolder(request).tensors("asked")
    with as_written(request, RECORDING):
        plan = _plan(pair, identity, note)
        device = plan.build.device
        inputs = placed(folder.inputs(note["draw"]), device)
        draw = DrawOf(note["lora"], note["seed"], plan.options, inputs)
        return Asked(plan, draw, note, {name: value.to(device) for name, value in tensors.items()})


def _plan(pair: ModelPair, identity: Mapping[str, Any], note: Mapping[str, Any]) -> Plan:
    build = Build(
        str(identity["size"]), dtype_of(identity["dtype"]), torch.device(identity["device"]), identity["weights_seed"]
    )
    options = Options(
        seed=note["seed"], twins=identity["twins"], shadow_dtype=dtype_of(identity["shadow_dtype"]),
        variant=note["variant"],
    )  # fmt: skip
    dtypes = {name: dtype_of(dtype) for name, dtype in identity["native_dtypes"].items()}
    return Plan(pair, build, options, ((note["lora"], note["variant"]),), dtypes)
