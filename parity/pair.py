"""`ModelPair` and `Side`: plain frozen data. Nothing is built until asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.tap import Inputs, Tap
from parity.known import Known, as_known, today
from parity.lora.adapter import LoraAdapter
from parity.space import Drawn, InputSpace
from parity.weights.keymap import KeyMap


@dataclass(frozen=True)
class Build:
    """What is built: size (a name the pair knows), storage dtype as deployed, device and the seed of random weights."""

    size: str = "tiny"
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    def with_(self, **changes: Any) -> Build:
        """Return a copy with fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Source:
    """Where a side's code comes from: a pip distribution or a checkout.

    Args:
        module: the module that holds the model class; what is really imported is checked against it.
        distribution: pip distribution whose version is recorded.
        checkout: environment variable that names a checkout; its commit is recorded.
        folder: folder below the project where a make target unpacks the distribution.
        get: the command that gets it, shown when it is missing.
        bundled: the code is this project's own.
    """

    module: str
    distribution: str | None = None
    checkout: str | None = None
    folder: str | None = None
    get: str = ""
    bundled: bool = False


@dataclass(frozen=True)
class Side:
    """How one model is loaded, called and surrounded.

    Args:
        name: shown in reports ("LongCat-Video original").
        source: where its code comes from.
        build: from a `Build` to an eval-mode module on its device, in its dtype as deployed.
        call: runs one forward from the pair's inputs; returns what the model returns.
        output: from what the model returned to the final output in the reference's layout [B, C, F, H, W].
        around_call: what surrounds a call (a forward context).
        around_session: what surrounds a session (environment before import, process group).
        apply_lora: puts an adapter (in this side's own module names) on the model while the context is open.
            None: the unmerged default of `parity.lora.apply`.
        compile: compiles the model, or parts of it, in place (`lambda model: model.compile()`): a lane that compares
            compiled with eager. None: only what `build` compiled is compared.
        from_call: from the arguments of a call of the model's `forward`, by name, to the pair's inputs; only needed to
            take inputs from a running pipeline.
        substitutes: what stands in for third-party parts that are not here, as of now; shown in every report.
    """

    name: str
    source: Source
    build: Callable[[Build], nn.Module]
    call: Callable[[nn.Module, Inputs], Any]
    output: Callable[[Any], Tensor]
    around_call: Callable[[nn.Module, Inputs], AbstractContextManager[Any]] = lambda model, inputs: nullcontext()
    around_session: Callable[[], AbstractContextManager[Any]] = nullcontext
    apply_lora: Callable[[nn.Module, LoraAdapter], AbstractContextManager[Any]] | None = None
    substitutes: Callable[[], list[str]] = list
    compile: Callable[[nn.Module], object] | None = None
    from_call: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


Call = Callable[[nn.Module, Inputs], Any]


@dataclass(frozen=True)
class Lane:
    """Another way to run a pair: several steps with a cache, guidance in one batch against two calls.

    Args:
        inputs: from a `Build` and a seed to the inputs; None: the pair's.
        reference, native: runs a side in this lane, from fresh state; None: as the side always does.
        reference_output, native_output: as `Side.output`, of what the lane's call returned; None: the side's own.
        taps: from a `Build` to the lane's taps; see `by_call` and `all_calls`. None: the pair's.
    """

    inputs: Callable[[Build, int], dict[str, Any]] | None = None
    reference: Call | None = None
    native: Call | None = None
    reference_output: Callable[[Any], Tensor] | None = None
    native_output: Callable[[Any], Tensor] | None = None
    taps: Callable[[Build], tuple[Tap, ...]] | None = None


@dataclass(frozen=True)
class ModelPair:
    """A reference and a native of one architecture.

    Args:
        name: lower case, underscore inside a word; the first part of every test id.
        reference, native: the two sides.
        key_map: from a `Build` to the rules from reference to native keys.
        taps: from a `Build` to the taps in execution order, the last one `final_output`. Must not build a model.
        inputs: from a `Build` and a seed to the inputs both sides are called with.
        variants: further kinds of inputs by name (image conditioning, a batch of two); each is a case of its own.
        lanes: further ways to run the pair, by name; each is a state of its own, as a variant is.
        lora: from a `Build` and the reference model to an adapter in the reference's module names; None: no LoRA cases.
        load: called with the reference's parameters and persistent buffers by key, and the native; loads the native's
            weights. None: through the key map.
        sizes: names `Build.size` may take, the first is the default.
        dtypes: storage dtypes the pair is meant for, the first is the default.
        declared: taps whose known approximation is allowed, with the reason (logic is off there, and said).
        known: precision differences that are known and accepted, by tap or kind of tap, with the reason, or a `Known`
            with owner and last day. A case that differs in precision there is an expected failure; a difference of
            logic is never accepted this way.
        draws: how many seeds are pooled by default.
        space: from a `Build` to what the inputs can vary; None: no drawn inputs.
        drawn: from a `Build` and the description of a drawn input to the inputs themselves; goes with `space`.
        ignored: inputs that one side may ignore, by name, with the reason.
    """

    name: str
    reference: Side
    native: Side
    key_map: Callable[[Build], KeyMap]
    taps: Callable[[Build], tuple[Tap, ...]]
    inputs: Callable[[Build, int], dict[str, Any]]
    variants: Mapping[str, Callable[[Build, int], dict[str, Any]]] = field(default_factory=dict)
    lanes: Mapping[str, Lane] = field(default_factory=dict)
    lora: Callable[[Build, nn.Module], LoraAdapter] | None = None
    load: Callable[[Mapping[str, Tensor], nn.Module], None] | None = None
    sizes: tuple[str, ...] = ("tiny",)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)
    declared: Mapping[str, str] = field(default_factory=dict)
    known: Callable[[Build], Mapping[str, str | Known]] = lambda build: {}
    draws: int = 1
    space: Callable[[Build], InputSpace] | None = None
    drawn: Callable[[Build, Drawn], dict[str, Any]] | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)


def variants_of(pair: ModelPair) -> tuple[str, ...]:
    """Return the names of everything a pair is run with: "" for its default, its variants, its lanes."""
    return ("", *pair.variants, *pair.lanes)


def known_now(pair: ModelPair, build: Build) -> dict[str, str]:
    """Return the differences a pair accepts today, by tap or kind of tap, in words."""
    found = {name: as_known(given) for name, given in pair.known(build).items()}
    return {name: known.worded() for name, known in found.items() if not known.expired(today())}


def known_expired(pair: ModelPair, build: Build) -> list[str]:
    """Return the differences a pair accepted until a day that is past."""
    found = {name: as_known(given) for name, given in pair.known(build).items()}
    return [f"{name}: {known.worded()}" for name, known in found.items() if known.expired(today())]


def in_variant(pair: ModelPair, name: str) -> ModelPair:
    """Return the pair as one of its variants or lanes runs it."""
    if name in pair.variants:
        return replace(pair, inputs=pair.variants[name])
    if name not in pair.lanes:
        return pair
    lane = pair.lanes[name]
    return replace(
        pair,
        inputs=lane.inputs or pair.inputs,
        taps=lane.taps or pair.taps,
        reference=_in_lane(pair.reference, lane.reference, lane.reference_output),
        native=_in_lane(pair.native, lane.native, lane.native_output),
    )


def _in_lane(side: Side, call: Call | None, output: Callable[[Any], Tensor] | None) -> Side:
    return replace(side, call=call or side.call, output=output or side.output)
