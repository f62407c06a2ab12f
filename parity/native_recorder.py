"""Recording the native against a recorded reference, so that the two can be compared where neither model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from parity.about import About, about
from parity.draws import dtypes_of, restart_of
from parity.environment import versions
from parity.errors import RecordError
from parity.execution.trace import Trace
from parity.identity import check_same, identity_of, key_of
from parity.io.recording import RecordingFolder
from parity.io.tree import digests_of
from parity.kept import PassRecorder, Tell, check_room, keep_inputs
from parity.recorded import Recorded
from parity.recorder import Plan
from parity.run import planned_draws
from parity.session import PairSession
from parity.stage import DrawOf


def record_native(plan: Plan, reference: Recorded, folder: Path, *, resume: bool = False, tell: Tell) -> Path:
    """Record the native's part of every draw, in lockstep with a recorded reference.

    Args:
        plan: what to record.
        reference: the recording of the reference.
        folder: where.
        resume: go on with a recording that was interrupted.
        tell: shown progress.

    Raises:
        OtherDtypes: the reference must be recorded for this native's dtypes first.
        RecordError: there is another recording, the disk is too small, or something cannot be kept.
        ParityError: the native cannot be loaded or run.
    """
    target = RecordingFolder(folder)
    with target.writing():
        found = target.begun()
        if found is not None and not resume:
            raise RecordError(f"{folder} holds a recording\ngo on with it by --resume, or choose another folder")
        session = PairSession(plan.pair, plan.build, reference)
        try:
            return _NativeRecording(plan, session, reference, target, tell).write(found)
        finally:
            session.close()


class _NativeRecording:
    """Writes what is missing of a native's recording."""

    def __init__(
        self, plan: Plan, session: PairSession, reference: Recorded, target: RecordingFolder, tell: Tell
    ) -> None:
        self._plan, self._session, self._reference, self._target, self._tell = plan, session, reference, target, tell
        self._live = session.native_stage
        self._passes = PassRecorder(target, self._live, plan.build.device, tell)
        self._about: About = about(session)

    def write(self, found: Mapping[str, Any] | None) -> Path:
        """Write the passes of every draw, and the manifest last."""
        identity = identity_of(
            self._plan.pair, self._plan.build, self._plan.options, self._session.taps,
            self._about.record["native"], adapter=self._session.adapter, native_dtypes={}, role="native",
        )  # fmt: skip
        identity["reference"] = key_of(self._reference.identity)
        if found is not None:
            check_same(identity, dict(found), str(self._target.path))
        draws = [d for state in self._plan.states for d in self._draws_of(*state)]
        self._live.learn_constants(draws[0])
        check_room(self._target, self._live, [_without_twins(d) for d in draws], {}, self._tell)
        self._target.begin(identity)
        held = {**self._earlier(), **{draw.name: self._in_variant(draw) for draw in draws}}
        return self._target.finish({
            "identity": identity,
            "about": {"record": self._about.record, "known": dict(self._about.known), "wrong": self._wrong()},
            "has_tables": self._live.has_tables,
            "made_with": versions(),
            "draws": dict(sorted(held.items())),
        })  # fmt: skip

    def _in_variant(self, draw: DrawOf) -> dict[str, Any]:
        with self._session.variant(draw.options.variant):
            return self._write_draw(draw)

    def _earlier(self) -> dict[str, Any]:
        """Return the draws of a complete recording, to which draws are added."""
        if not (self._target.path / "manifest.json").exists():
            return {}
        return dict(self._target.manifest()["draws"])

    def _draws_of(self, lora: bool, variant: str) -> list[DrawOf]:
        return planned_draws(self._session, lora, replace(self._plan.options, variant=variant))

    def _wrong(self) -> list[dict[str, Any]]:
        """Return the native's weights that are not the reference's, without their values."""
        fields = ("native_key", "equal", "rel_l2", "swapped_with", "native_finer")
        return [{f: getattr(w, f) for f in fields} for w in self._session.weights.values() if w.differs]

    def _write_draw(self, draw: DrawOf) -> dict[str, Any]:
        keep_inputs(self._target, draw)
        if draw.lora:
            self._passes.once(draw, "baseline", lambda: self._live.baseline(draw), high=False)
        with self._session.lora(draw.lora):
            free = self._passes.once(draw, "free", lambda: self._live.free(draw), high=False)
            expected = self._reference.lockstep(draw, dtypes_of(free)).trace
            restart = partial(restart_of, self._session.taps, expected, free, draw.inputs)
            trace = self._passes.once(
                draw, "lockstep", lambda: self._live.trace(draw, restart, expected.decisions)
            )
            observer = self._live.observe(draw, restart, trace)
            self._as_stored(draw, free)
            compiled = self._live.compiled(draw)
            return {
                "lora": draw.lora, "seed": draw.seed, "variant": draw.options.variant, "observer": observer,
                "inputs": digests_of(draw.inputs),
                "compiled": None if compiled is None else asdict(compiled),
                "finer_weights": self._session.finer_weights(draw.lora),
            }  # fmt: skip

    def _as_stored(self, draw: DrawOf, free: Trace) -> None:
        if not (self._live.has_tables or self._reference.has_tables):
            return
        stored = self._reference.as_stored(draw, dtypes_of(free))
        restart = partial(restart_of, self._session.taps, stored, free, draw.inputs)
        self._passes.once(draw, "as_stored", lambda: self._live.as_stored(draw, restart, stored.decisions))


def _without_twins(draw: DrawOf) -> DrawOf:
    return replace(draw, options=replace(draw.options, twins=0))
