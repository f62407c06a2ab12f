"""Both models of a pair, loaded once, and the passes a verdict needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import ModelFailed, ParityError
from parity.execution.passes import Runner
from parity.execution.roots import EXACT_ABOVE, build_remembering, pruned, roots_of
from parity.execution.shadow import Shadow
from parity.execution.storage import ShadowTable, bits
from parity.execution.tap import Inputs, Tap
from parity.lora.adapter import LoraAdapter
from parity.lora.apply import applied
from parity.lora.mapping import map_adapter
from parity.pair import Build, ModelPair, Side
from parity.weights.keymap import KeyMap
from parity.weights.load import WeightComparison, finer_sources, load_native, tensors_of


@dataclass
class LoadedSide:
    """One side, built. `memory` holds the exact values of tables made while building and in the first call."""

    label: str
    side: Side
    model: nn.Module
    memory: list[ShadowTable]
    finer: dict[int, Tensor] = field(default_factory=dict)

    def runner(self, taps: tuple[Tap, ...]) -> Runner:
        """Return what calls this side with its taps attached."""
        return Runner(self.label, self.model, self.side.call, self.side.output, taps, self.side.around_call)

    def shadow(self, make: Callable[..., Shadow], inputs: Inputs, **options: Any) -> Shadow:
        """Make a shadow whose roots are the model's and the inputs, with every finer value that is known."""
        for table in self.memory:
            pruned(table, self.model)
        return make(roots=roots_of(self.model, dict(inputs)), finer=self.finer, memory=self.memory, **options)

    def learn_constants(self, inputs: Inputs, taps: tuple[Tap, ...]) -> None:
        """Run a forward once under a shadow, for tables that are made and cached in the first call.

        The taps only tell how far a forward came that raises.
        """
        shadow = self.shadow(Shadow, inputs, exact_above=EXACT_ABOVE)
        self.runner(taps).run(inputs, None, shadow)
        self.memory.append(shadow.table)


class PairSession:
    """Load both sides of a pair once and hand out runners, LoRA states and inputs.

    Args:
        pair: the pair. build: what is built.
        reference: a reference that is loaded already, for several natives of one reference.

    Attributes:
        traces: set to a dict to share the reference's passes between sessions of one reference.

    Raises:
        SourceMissing: third-party code is not here.
        ModelFailed: a side does not build.
        KeyMapError: the key map is not total.
    """

    def __init__(self, pair: ModelPair, build: Build, reference: LoadedSide | None = None) -> None:
        self.pair, self.build = pair, build
        self.traces: dict[Any, Any] | None = None
        self.taps = pair.taps(build)
        self._learned = False
        self._open = ExitStack()
        try:
            self._open.enter_context(pair.reference.around_session())
            self._open.enter_context(pair.native.around_session())
            self.reference = reference or self._load("reference", pair.reference)
            self.native = self._load("native", pair.native)
            self._check_unshared()
            self._load_weights()
        except BaseException:
            self._open.close()
            raise

    def _load(self, label: str, side: Side) -> LoadedSide:
        try:
            model, memory = build_remembering(lambda: side.build(self.build))
        except ParityError:
            raise
        except Exception as error:
            raise ModelFailed(f"the {label} {side.name!r} does not build: {type(error).__name__}: {error}") from error
        return LoadedSide(label, side, model.eval(), [memory])

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

    def _load_weights(self) -> None:
        reference, native = self.reference.model, self.native.model
        key_map = self.pair.key_map(self.build)
        if self.pair.load is not None:
            self.pair.load(reference, native)
        else:
            load_native(native, reference, key_map)
        self.weights: dict[str, WeightComparison] = finer_sources(native, reference, key_map)
        held = dict(native.named_parameters())
        self.native.finer = {
            id(held[key]): c.finer for key, c in self.weights.items() if c.finer is not None and key in held
        }
        if any(c.native_finer for c in self.weights.values()):
            self.reference.finer = self._finer_reference(key_map)

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
        return None if self.pair.lora is None else self.pair.lora(self.build, self.reference.model)

    @cached_property
    def native_adapter(self) -> LoraAdapter:
        """The pair's LoRA carried to the native's module names."""
        assert self.adapter is not None
        shapes = [{k: v.shape for k, v in tensors_of(s.model).items()} for s in (self.reference, self.native)]
        return map_adapter(self.adapter, self.pair.key_map(self.build), shapes[0], shapes[1])

    @contextmanager
    def lora(self, on: bool) -> Iterator[None]:
        """Put the LoRA on both sides, each in its own way, while the context is open."""
        if not on:
            yield
            return
        assert self.adapter is not None
        with ExitStack() as stack:
            for side, adapter in ((self.reference, self.adapter), (self.native, self.native_adapter)):
                put = side.side.apply_lora or applied
                before = _target_weights(side.model, adapter)
                stack.enter_context(put(side.model, adapter))
                merged = _merged_weights(side, adapter, before)
                stack.callback(setattr, side, "finer", side.finer)
                side.finer = {**side.finer, **merged}
            yield

    def inputs(self, seed: int, variant: str = "") -> dict[str, Any]:
        """Return the inputs of a draw, on the build's device."""
        draw = self.pair.variants[variant] if variant else self.pair.inputs
        return self.placed(draw(self.build, seed))

    def placed(self, inputs: Inputs) -> dict[str, Any]:
        """Return inputs on the build's device."""
        return {k: v.to(self.build.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}

    def learn_constants(self, inputs: Inputs) -> None:
        """Learn the exact values of tables cached in the first call; once a session."""
        if not self._learned:
            self._learned = True
            self.reference.learn_constants(inputs, self.taps)
            self.native.learn_constants(inputs, self.taps)

    def close(self) -> None:
        """Leave what surrounds the sides (process groups, environment)."""
        self._open.close()


def _target_weights(model: nn.Module, adapter: LoraAdapter) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weight of each target, and a copy of it."""
    modules = dict(model.named_modules())
    weights = {path: getattr(modules.get(path), "weight", None) for path in adapter.targets}
    return {path: (w, w.detach().clone()) for path, w in weights.items() if isinstance(w, Tensor)}


def _merged_weights(
    side: LoadedSide, adapter: LoraAdapter, before: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[int, Tensor]:
    """Return the exact values of weights an adapter was merged into: stored-weight rounding, not another function.

    A weight that is not what merging the adapter gives, to two units in the last place, keeps its stored values.
    """
    found = {}
    for path, (weight, old) in before.items():
        if torch.equal(weight, old):
            continue
        finer = side.finer.get(id(weight), old).double() + adapter.targets[path].delta().to(old.device)
        unit = 2.0 ** (2 - bits(weight.dtype))
        slack = unit * finer.abs().clamp_min(torch.finfo(weight.dtype).tiny)
        if bool(((weight.double() - finer).abs() <= slack).all()):
            found[id(weight)] = finer
    return found


@contextmanager
def opened(pair: ModelPair, build: Build) -> Iterator[PairSession]:
    """Open a session and close it."""
    session = PairSession(pair, build)
    try:
        yield session
    finally:
        session.close()


def weight_differences(weights: Mapping[str, WeightComparison]) -> list[str]:
    """Word every weight that differs, swaps first."""
    found = sorted((c for c in weights.values() if c.differs), key=lambda c: (c.swapped_with is None, c.native_key))
    return [
        f"{c.native_key} holds what should be {c.swapped_with}" if c.swapped_with
        else f"{c.native_key} differs from the mapped reference by {c.rel_l2:.1e}"
        for c in found
    ]  # fmt: skip
