"""How natives are made wrong: calls of ops, modules, weights or an adapter, each within some of a native's modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.modes import Mode
from parity.execution.rules import rule_of
from parity.lora.adapter import LoraAdapter

UNTOUCHED = object()
"""What a plant returns for a call that it leaves as it is."""


@dataclass(frozen=True)
class AsIs:
    """What a call gave, for a plant that looks at it and leaves it."""

    out: Any


@dataclass
class OpCall:
    """One call of an op within a module's forward.

    Args:
        name: short, `addmm`. func, args, kwargs: the call.
        nth: how many calls of this name came before in this forward. kept: what the plant remembers of this forward.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    nth: int = 0
    kept: dict[str, Any] = field(default_factory=dict)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the op, with other arguments where some are given, and keyword arguments changed."""
        return self.func(*(args or self.args), **{**self.kwargs, **kwargs})

    def with_argument(self, place: int, value: Any) -> Any:
        """Call the op with another value of one argument."""
        args = [*self.args, *[False] * (place + 1 - len(self.args))]
        args[place] = value
        return self.func(*args, **self.kwargs)


def waves_of(call: OpCall) -> tuple[list[Tensor], AsIs | None]:
    """Return the sines and cosines of this forward by now, and what the call gave where it is one itself."""
    waves: list[Tensor] = call.kept.setdefault("waves", [])
    if call.name not in ("cos", "sin"):
        return waves, None
    waves.append(call.run())
    return waves, AsIs(waves[-1])


@dataclass(frozen=True)
class OpPlant:
    """Ops called otherwise; `wrong` returns what a call gives instead, or `UNTOUCHED`."""

    wrong: Callable[[OpCall], Any]


@dataclass(frozen=True)
class ModulePlant:
    """A module's forward replaced.

    Args:
        choose: from the module planted in to the modules below it that are made wrong, itself included.
        wrong: from a module, its own forward and the arguments of a call to what the call returns, or `UNTOUCHED`.
    """

    choose: Callable[[nn.Module], list[nn.Module]]
    wrong: Callable[..., Any]


@dataclass(frozen=True)
class WeightPlant:
    """Weights edited once they are loaded; `edit` returns how many it changed of a module's."""

    edit: Callable[[nn.Module], int]


@dataclass(frozen=True)
class AdapterPlant:
    """A LoRA changed before it is applied; `edit` gets it with the names of the targets in the modules."""

    edit: Callable[[LoraAdapter, list[str]], LoraAdapter]


Edit = OpPlant | ModulePlant | WeightPlant | AdapterPlant


class PlantedOps(Mode):
    """Runs a module's forward with an op plant; counts what it changed."""

    def __init__(self, wrong: Callable[[OpCall], Any], count: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wrong, self._count = wrong, count
        self._seen: dict[str, int] = {}
        self._kept: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(t is not Tensor and t is not nn.Parameter for t in types):
            return NotImplemented
        name = rule_of(func).short
        nth = self._seen.get(name, 0)
        self._seen[name] = nth + 1
        given = self._wrong(OpCall(name, func, args, kwargs, nth, self._kept))
        if given is UNTOUCHED:
            return func(*args, **kwargs)
        if isinstance(given, AsIs):
            return given.out
        self._count[0] += 1
        return given


def linears(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules below one that hold a matrix as `weight`."""
    return [(n, m) for n, m in module.named_modules() if _dims(m) == 2 and not list(m.children())]


def norms(module: nn.Module) -> list[nn.Module]:
    """List the norms below a module: nothing but a gain, and perhaps a bias; the narrowest first."""
    found = [m for m in module.modules() if _dims(m) == 1 and not list(m.children())]
    return sorted(found, key=_width)


def _width(module: nn.Module) -> int:
    weight: Any = module.weight
    return int(weight.numel())


def _dims(module: nn.Module) -> int:
    weight = module._parameters.get("weight")
    return 0 if weight is None else weight.dim()


def floats(args: Any) -> list[Tensor]:
    """Return the tensors of floats among the arguments of a call."""
    return [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]


def is_wide(call: OpCall) -> bool:
    """Say whether a call reads float32."""
    return any(t.dtype == torch.float32 for t in floats(call.args))


def in_low(call: OpCall) -> Any:
    """Run a call in bfloat16 and return what it gives in the dtype it should have."""

    def low(held: Any) -> Any:
        return held.to(torch.bfloat16) if isinstance(held, Tensor) and held.is_floating_point() else held

    told = {k: low(v) for k, v in call.kwargs.items()}
    out = call.func(*(low(a) for a in call.args), **told)
    wide = torch.float32
    return out.to(wide) if isinstance(out, Tensor) else type(out)(o.to(wide) for o in out)


def low_ops(*names: str, scalars: bool = True) -> OpPlant:
    """Return the plant that runs ops of these names in bfloat16 where they read float32."""

    def wrong(call: OpCall) -> Any:
        if call.name not in names or not is_wide(call) or (not scalars and len(floats(call.args)) < 2):
            return UNTOUCHED
        return in_low(call)

    return OpPlant(wrong)


def is_attention(call: OpCall) -> bool:
    """Say whether a call is a fused attention kernel."""
    return call.name.startswith("_scaled_dot_product")


def pairs_alike(modules: list[nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
    """Return the first two modules that hold parameters of the same shapes, in a list; none where there are none."""
    for i, one in enumerate(modules):
        for other in modules[i + 1 :]:
            if [p.shape for p in one.parameters(False)] == [p.shape for p in other.parameters(False)]:
                return [(one, other)]
    return []
