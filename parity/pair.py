"""`ModelPair` and `Side`: plain frozen data. Nothing is built until asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.tap import Inputs, Tap
from parity.lora.adapter import LoraAdapter
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
    from_call: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


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
        lora: from a `Build` and the reference model to an adapter in the reference's module names; None: no LoRA cases.
        load: called with the reference's parameters and persistent buffers by key, and the native; loads the native's
            weights. None: through the key map.
        sizes: names `Build.size` may take, the first is the default.
        dtypes: storage dtypes the pair is meant for, the first is the default.
        declared: taps whose known approximation is allowed, with the reason (logic is off there, and said).
        known: precision differences that are known and accepted, by tap or kind of tap, with the reason. A case that
            differs in precision there is an expected failure; a difference of logic is never accepted this way.
        draws: how many seeds are pooled by default.
    """

    name: str
    reference: Side
    native: Side
    key_map: Callable[[Build], KeyMap]
    taps: Callable[[Build], tuple[Tap, ...]]
    inputs: Callable[[Build, int], dict[str, Any]]
    variants: Mapping[str, Callable[[Build, int], dict[str, Any]]] = field(default_factory=dict)
    lora: Callable[[Build, nn.Module], LoraAdapter] | None = None
    load: Callable[[Mapping[str, Tensor], nn.Module], None] | None = None
    sizes: tuple[str, ...] = ("tiny",)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)
    declared: Mapping[str, str] = field(default_factory=dict)
    known: Callable[[Build], Mapping[str, str]] = lambda build: {}
    draws: int = 1
