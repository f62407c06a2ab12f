"""Recording the reference: every pass a verdict needs of it, streamed to disk, so that its model may go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from parity.about import about_side
from parity.diagnose.side_ops import side_ops
from parity.environment import versions
from parity.errors import NotReached, RecordError
from parity.execution.passes import FromReference
from parity.execution.trace import Trace
from parity.identity import Identity, check_inputs, check_same, identity_of
from parity.io.recording import RECORDING, RecordingFolder
from parity.io.records import as_written
from parity.io.tree import digests_of
from parity.kept import PassRecorder, Tell, check_room, keep_inputs, passes_of
from parity.live import LiveReference
from parity.loaded import LoadedSide, load_side, stored_lora, with_lora
from parity.lora.adapter import LoraAdapter
from parity.lora_audit import SideReport, audited
from parity.pair import Build, ModelPair, in_variant
from parity.stage import DrawOf, Dtypes, Options, placed
from parity.weights.load import tensors_of

State = tuple[bool, str]
"""LoRA on or off, and the variant of inputs."""


@dataclass(frozen=True)
class Plan:
    """What is to be recorded.

    Args:
        pair: the pair. build: what is built. options: how it is run; its seed is the first draw's.
        states: LoRA states and variants.
        native_dtypes: taps where the native is coarser, as a native stage found.
        inputs: inputs by variant that replace the pair's own: what entered a real pipeline's model.
    """

    pair: ModelPair
    build: Build
    options: Options
    states: tuple[State, ...]
    native_dtypes: Dtypes
    inputs: Mapping[str, Mapping[str, Any]] | None = None

    def draws(self) -> list[DrawOf]:
        """Return every draw, in the order of the states."""
        first, count = self.options.seed, self.options.draws or self.pair.draws
        found = []
        for lora, variant in self.states:
            for seed in range(first, first + count):
                options = replace(self.options, variant=variant)
                found.append(DrawOf(lora, seed, options, placed(self._inputs(variant, seed), self.build.device)))
        return found

    def _inputs(self, variant: str, seed: int) -> Mapping[str, Any]:
        if self.inputs is not None:
            return self.inputs[variant]
        return in_variant(self.pair, variant).inputs(self.build, seed)


class ReferenceAtWork:
    """The reference, loaded to be recorded or to propagate errors.

    Attributes:
        identity: what a recording made now is of.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._open = ExitStack()
        self._open.enter_context(plan.pair.reference.around_session())
        try:
            self.side: LoadedSide = load_side("reference", plan.pair.reference, plan.build)
            self.taps = plan.pair.taps(plan.build)
            self.live = LiveReference(self.side, self.taps)
            self.about = about_side(self.side)
            self.adapter = self._adapter()
            self.identity: Identity = identity_of(
                plan.pair, plan.build, plan.options, self.taps, self.about["side"],
                adapter=self.adapter, native_dtypes=plan.native_dtypes,
            )  # fmt: skip
            if plan.inputs is not None:
                self.identity["from_call"] = True
        except BaseException:
            self._open.close()
            raise

    def _adapter(self) -> LoraAdapter | None:
        lora = self.plan.pair.lora
        return None if lora is None else stored_lora(self.side.model, lora(self.plan.build, self.side.model))

    def close(self) -> None:
        """Leave what surrounds the side."""
        self._open.close()

    def impacts(self, draw: DrawOf, requests: Sequence[Any]) -> list[float]:
        """Propagate errors through the reference in the draw's state."""
        found: list[float] = self.working(draw, lambda live: live.impacts(draw, requests))
        return found

    def working(self, draw: DrawOf, work: Callable[[LiveReference], Any]) -> Any:
        """Do some work on the reference in the draw's state."""
        pair = in_variant(self.plan.pair, draw.options.variant)
        with ExitStack() as stack:
            stack.enter_context(self.live.running(pair.reference, pair.taps(self.plan.build)))
            self.live.learn_constants(draw)
            if draw.lora and self.adapter is not None:
                stack.enter_context(with_lora(self.side, self.adapter))
            return work(self.live)


def record_reference(plan: Plan, folder: Path, *, resume: bool = False, tell: Tell = lambda text: None) -> Path:
    """Record the reference's part of every draw; whole passes of an interrupted recording are kept.

    Args:
        plan: what to record.
        folder: where.
        resume: go on with a recording that was interrupted, or add draws to one that is complete.
        tell: shown progress.

    Raises:
        RecordError: there is another recording, the disk is too small, or something cannot be kept.
        ParityError: the reference cannot be loaded or run.
    """
    target = RecordingFolder(folder)
    with target.writing():
        found = target.begun()
        if found is not None and not resume:
            raise RecordError(f"{folder} holds a recording\ngo on with it by --resume, or choose another folder")
        at_work = ReferenceAtWork(plan)
        try:
            if found is not None:
                check_same(at_work.identity, found, str(folder))
            return ReferenceRecording(at_work, target, tell, ops=True).write()
        finally:
            at_work.close()


class ReferenceRecording:
    """Writes what is missing of a recording.

    Args:
        at_work: the reference, loaded.
        target: where it goes; the right to write is held.
        tell: shown progress.
        ops: keep the ops of the lockstep pass, for judging where the model cannot be loaded.
    """

    def __init__(self, at_work: ReferenceAtWork, target: RecordingFolder, tell: Tell, *, ops: bool = False) -> None:
        self._at, self._target, self._tell, self._ops = at_work, target, tell, ops
        self._plan, self._live = at_work.plan, at_work.live
        self._draws = at_work.plan.draws()
        self._lora: dict[str, Any] = {}
        self._passes = PassRecorder(target, at_work.live, at_work.plan.build.device, tell)

    def write(self) -> Path:
        """Write weights, LoRA, inputs and passes, and the manifest last."""
        earlier = self._earlier()
        self._check_inputs(earlier)
        manifest = self._target.path / "manifest.json"
        missing = [d for d in self._draws if d.name not in earlier]
        if not missing and manifest.exists():
            return manifest
        if missing:  # without draws only weights and LoRA are kept: enough to load a native
            self._live.learn_constants(self._draws[0])
            check_room(self._target, self._live, missing, tensors_of(self._at.side.model), self._tell)
        self._target.begin(self._at.identity)
        self._write_tensors()
        for draw in self._draws:
            if draw.name not in earlier:
                earlier[draw.name] = self._write_draw(draw)
        return self._target.finish({
            "identity": self._at.identity,
            "about": self._at.about,
            "has_tables": self._live.has_tables,
            "made_with": versions(),
            "lora": self._lora,
            "draws": dict(sorted(earlier.items())),
        })  # fmt: skip

    def _earlier(self) -> dict[str, Any]:
        """Return the draws that are recorded already; one whose files went since is recorded again."""
        if not (self._target.path / "manifest.json").exists():
            return {}
        held = self._target.manifest()
        self._lora = dict(held.get("lora", {}))
        names = {d.name: passes_of(d, bool(held["has_tables"])) for d in self._draws}
        return {n: d for n, d in held["draws"].items() if n not in names or self._has(n, names[n])}

    def _has(self, draw: str, passes: list[str]) -> bool:
        return self._target.has_all(draw, passes) and (not self._ops or self._target.has_ops(draw))

    def _check_inputs(self, earlier: Mapping[str, Any]) -> None:
        for draw in self._draws:
            if draw.name in earlier:
                with as_written(self._target.path, RECORDING):
                    check_inputs(draw, earlier[draw.name]["inputs"], str(self._target.path))

    def _write_tensors(self) -> None:
        if not self._target.has_tensors("weights"):
            self._tell("weights")
            self._target.write_tensors("weights", tensors_of(self._at.side.model))
        adapter = self._at.adapter
        if adapter is not None and not self._target.has_tensors("lora"):
            tensors = {f"{path}#{n}": value for path, t in adapter.targets.items() for n, value in t.tensors().items()}
            targets = {path: [t.scaling, t.scaling_from, t.embedding] for path, t in adapter.targets.items()}
            tensors |= {f"{name}#full": change.value for name, change in adapter.changes.items()}
            changes = {name: change.replaces for name, change in adapter.changes.items()}
            self._target.write_tensors("lora", tensors, {"name": adapter.name, "targets": targets, "changes": changes})

    def _write_draw(self, draw: DrawOf) -> dict[str, Any]:
        keep_inputs(self._target, draw)
        pair = in_variant(self._plan.pair, draw.options.variant)
        with self._live.running(pair.reference, pair.taps(self._plan.build)):
            try:
                return self._write_passes(draw)
            except NotReached as error:
                error.variant = draw.options.variant
                raise

    def _write_passes(self, draw: DrawOf) -> dict[str, Any]:
        if draw.lora:
            self._passes.once(draw, "baseline", lambda: self._live.without_lora(draw), high=False)
        with ExitStack() as stack:
            if draw.lora and self._at.adapter is not None:
                stack.enter_context(self._with_lora(draw, self._at.adapter))
            self._passes.once(draw, "free", lambda: self._live.free(draw), high=False)
            trace = self._passes.once(draw, "lockstep", lambda: self._live.trace(draw, self._plan.native_dtypes))
            for k in range(draw.options.twins):
                twin = self._twin(draw, trace, k)
                self._passes.once(draw, f"twin{k}", twin, low=False)
            if self._live.has_tables:
                self._passes.once(draw, "as_stored", lambda: self._live.as_stored(draw, self._plan.native_dtypes))
            if self._ops:
                restart = FromReference(self._plan.native_dtypes, draw.inputs)
                self._passes.ops_once(draw, lambda: side_ops(self._live, draw, restart))
            return self._described(draw, trace)

    @contextmanager
    def _with_lora(self, draw: DrawOf, adapter: LoraAdapter) -> Iterator[None]:
        """Put the LoRA on; look the first time at what it does to each layer."""
        reports: dict[str, SideReport] = {}
        if self._lora:
            with with_lora(self._at.side, adapter):
                yield
            return
        with audited([(self._at.side, adapter)], reports, lambda: draw.inputs):
            yield
        self._lora = {side: report.as_dict() for side, report in reports.items()}

    def _twin(self, draw: DrawOf, trace: Trace, k: int) -> Callable[[], Trace]:
        return lambda: self._live.twin(draw, self._plan.native_dtypes, trace, k)

    def _described(self, draw: DrawOf, trace: Trace) -> dict[str, Any]:
        self._tell(f"{draw.name} observer")
        restart = FromReference(self._plan.native_dtypes, draw.inputs)
        compiled = self._live.compiled(draw)
        return {
            "lora": draw.lora,
            "seed": draw.seed,
            "variant": draw.options.variant,
            "inputs": digests_of(draw.inputs),
            "observer": self._live.observed(draw, restart, trace),
            "compiled": None if compiled is None else asdict(compiled),
        }
