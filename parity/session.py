"""Both models of a pair, loaded once, and the passes a verdict needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from parity.errors import ParityError, RecordError
from parity.execution.module_state import ModuleState
from parity.execution.tap import Inputs
from parity.live import LiveNative, LiveReference
from parity.loaded import LoadedSide, load_side, stored_lora
from parity.lora.adapter import LoraAdapter
from parity.lora.mapping import map_adapter
from parity.lora_audit import SideReport, audited
from parity.pair import Build, ModelPair, in_variant
from parity.stage import RecordedReference, ReferenceStage, placed
from parity.weights.keymap import KeyMap
from parity.weights.load import WeightComparison, compared_weights, load_native, tensors_of


class PairSession:
    """Load both sides of a pair once and hand out their stages, LoRA states and inputs.

    Args:
        pair: the pair.
        build: what is built.
        reference: a reference that is loaded already, for several natives of one reference; or the recording of one,
            so that only the native is resident.

    Attributes:
        traces: set to a dict to share the reference's passes between sessions of one reference.
        weights: what each native tensor holds, against what the key map says it should.
        lora_reports: what each resident side makes of the LoRA, once it was on.

    Raises:
        SourceMissing: third-party code is not here.
        ModelFailed: a side does not build.
        KeyMapError: the key map is not total.
    """

    def __init__(
        self, pair: ModelPair, build: Build, reference: LoadedSide | RecordedReference | None = None
    ) -> None:
        self.pair, self.build = pair, build
        self.traces: dict[Any, Any] | None = None
        self.taps = pair.taps(build)
        self._runs = pair
        self.recorded = None if isinstance(reference, LoadedSide) else reference
        self._live = reference if isinstance(reference, LoadedSide) else None
        self._native: LoadedSide | None = None
        self._native_stage: LiveNative | None = None
        self.weights: dict[str, WeightComparison] = {}
        self.lora_reports: dict[str, SideReport] = {}
        self._open = ExitStack()
        try:
            if self.recorded is None:
                self._open.enter_context(pair.reference.around_session())
            self._open.enter_context(pair.native.around_session())
            if self.recorded is None and self._live is None:
                self._live = load_side("reference", pair.reference, build)
            self.load_native()
        except BaseException:
            self._open.close()
            raise

    @property
    def reference(self) -> LoadedSide:
        """The reference's model.

        Raises:
            ParityError: it is not resident, only a recording of it is at hand.
        """
        if self._live is None:
            raise ParityError(f"{self.pair.name}: the reference is a recording here, its model is not resident")
        return self._live

    @property
    def native(self) -> LoadedSide:
        """The native's model; loaded again where it had to make room."""
        if self._native is None:
            self.load_native()
        assert self._native is not None
        return self._native

    @cached_property
    def reference_stage(self) -> ReferenceStage:
        """What answers for the reference: its model or its recording."""
        if self.recorded is not None:
            return self.recorded
        return LiveReference(self.reference, self.taps, shared=self.traces)

    @property
    def native_stage(self) -> LiveNative:
        """What answers for the native; loaded again where it had to make room."""
        if self._native_stage is None:
            self._native_stage = LiveNative(self.native, self.taps)
            self._native_stage.run_as(self._runs.native, self.taps)
        return self._native_stage

    def load_native(self) -> None:
        """Build the native and give it its weights; a recorded reference that was loaded again makes room."""
        if self.recorded is not None:
            self.recorded.let_go()
        self._native = load_side("native", self.pair.native, self.build)
        if self._live is not None:
            self._check_unshared()
        self._load_weights(self._native)
        self._native.unused = ModuleState(self._native.model)

    def release_native(self) -> None:
        """Let go of the native, to make room for the reference; it is loaded again when it is asked for."""
        self._native = self._native_stage = None
        self.weights = {key: replace(found, finer=None) for key, found in self.weights.items()}

    @property
    def reference_tensors(self) -> Mapping[str, Tensor]:
        """The reference's parameters and persistent buffers by key; those of a recording are read when asked for."""
        return self.recorded.tensors if self.recorded is not None else tensors_of(self.reference.model)

    def _check_unshared(self) -> None:
        """Both sides must not run the same code or hold the same memory: a comparison with itself proves nothing."""
        if type(self.reference.model) is type(self.native.model):
            raise ParityError(
                f"{self.pair.name}: both sides are the same class {type(self.native.model).__qualname__}\n"
                "a model compared with itself always agrees; check which checkout each side imports"
            )
        whole = type(self.reference.model)
        held = [name for name, m in self.native.model.named_modules() if type(m) is whole]
        if held and not whole.__module__.startswith("torch."):
            raise ParityError(
                f"{self.pair.name}: the native's {held[0]!r} is the reference's own class {whole.__qualname__}\n"
                "a model compared with itself always agrees; check what the native wraps or imports"
            )
        mine = {id(m) for m in self.reference.model.modules()}
        shared = [name for name, m in self.native.model.named_modules() if id(m) in mine]
        if shared:
            raise ParityError(f"{self.pair.name}: both sides share the module {shared[0]!r}")

    def _load_weights(self, native: LoadedSide) -> None:
        tensors, key_map = self.reference_tensors, self.pair.key_map(self.build)
        if self.pair.load is not None:
            self.pair.load(tensors, native.model)
        else:
            load_native(native.model, tensors, key_map)
        self.key_plan, self.weights = compared_weights(native.model, tensors, key_map)
        held = dict(native.model.named_parameters())
        native.finer = {
            id(held[key]): c.finer for key, c in self.weights.items() if c.finer is not None and key in held
        }
        finer = [key for key, c in self.weights.items() if c.native_finer]
        if finer:
            self._check_resident(finer)
            self.reference.finer = self._finer_reference(key_map)

    def _check_resident(self, finer: list[str]) -> None:
        """Where the native's weights are the finer ones, the reference's shadow takes them, so both must be here."""
        if self.recorded is not None:
            raise RecordError(
                f"{self.pair.name}: the native stores {len(finer)} weights more finely than the reference: {finer[0]}\n"
                "a recorded reference cannot take their values into its shadow\n"
                "judge with both models resident: --parity-residency=together, without --parity-reference"
            )

    def _finer_reference(self, key_map: KeyMap) -> dict[int, Tensor]:
        """Return the native's values of reference parameters that are their rounding: what both were stored from."""
        source, target = tensors_of(self.reference.model), tensors_of(self.native.model)
        plan = key_map.plan({k: v.shape for k, v in source.items()}, {k: v.shape for k, v in target.items()})
        held = dict(self.reference.model.named_parameters())
        return {
            id(held[key]): value
            for key, value in plan.reference_tensors(target).items()
            if key in held and value.dtype != held[key].dtype and torch.equal(value.to(held[key].dtype), held[key])
        }

    @cached_property
    def adapter(self) -> LoraAdapter | None:
        """The pair's LoRA in the reference's module names."""
        if self.recorded is not None:
            return self.recorded.adapter
        made = None if self.pair.lora is None else self.pair.lora(self.build, self.reference.model)
        return None if made is None else stored_lora(self.reference.model, made)

    @cached_property
    def native_adapter(self) -> LoraAdapter:
        """The pair's LoRA carried to the native's module names."""
        assert self.adapter is not None
        tensors = self.reference_tensors, tensors_of(self.native.model)
        shapes = [{k: v.shape for k, v in held.items()} for held in tensors]
        return map_adapter(self.adapter, self.pair.key_map(self.build), shapes[0], shapes[1])

    @contextmanager
    def lora(self, on: bool) -> Iterator[None]:
        """Put the LoRA on every resident side, each in its own way, while the context is open."""
        if not on:
            yield
            return
        with audited(self._lora_sides(), self.lora_reports, lambda: self.inputs(0)):
            yield

    def lora_found(self) -> dict[str, Any]:
        """Return what each resident side made of the LoRA, as a record holds it."""
        recorded = {} if self.recorded is None else dict(self.recorded.lora_found)
        return {**recorded, **{side: report.as_dict() for side, report in self.lora_reports.items()}}

    def _lora_sides(self) -> list[tuple[LoadedSide, LoraAdapter]]:
        """Return every resident side, with the LoRA in its names."""
        assert self.adapter is not None
        own = [] if self.recorded is not None else [(self.reference, self.adapter)]
        return [*own, (self.native, self.native_adapter)]

    @contextmanager
    def variant(self, name: str) -> Iterator[None]:
        """Run the pair as one of its variants or lanes while the context is open."""
        kept = self._runs
        self._run_as(in_variant(self.pair, name))
        try:
            yield
        finally:
            self._run_as(kept)

    def _run_as(self, pair: ModelPair) -> None:
        """Call what is resident as a variant says, and a native that is loaded again later; none is held meanwhile."""
        self._runs, self.taps = pair, pair.taps(self.build)
        if self._native_stage is not None:
            self._native_stage.run_as(pair.native, self.taps)
        if isinstance(stage := self.reference_stage, LiveReference):
            stage.run_as(pair.reference, self.taps)

    def finer_weights(self, lora: bool) -> list[str]:
        """List the native's weights that are rounded copies of finer values, in the LoRA state that is on now."""
        return [name for name, p in self.native.model.named_parameters() if id(p) in self.native.finer]

    def inputs(self, seed: int, variant: str = "") -> dict[str, Any]:
        """Return the inputs of a draw, on the build's device."""
        return self.placed(in_variant(self.pair, variant).inputs(self.build, seed))

    def placed(self, inputs: Inputs) -> dict[str, Any]:
        """Return inputs on the build's device."""
        return placed(inputs, self.build.device)

    def close(self) -> None:
        """Leave what surrounds the sides (process groups, environment)."""
        self._open.close()


@contextmanager
def opened(pair: ModelPair, build: Build) -> Iterator[PairSession]:
    """Open a session and close it."""
    session = PairSession(pair, build)
    try:
        yield session
    finally:
        session.close()
