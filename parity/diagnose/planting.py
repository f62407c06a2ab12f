"""Signatures planted into a pair's native: what a benchmark needs of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.diagnose.plants import UNTOUCHED, AdapterPlant, ModulePlant, OpPlant, PlantedOps, WeightPlant
from parity.diagnose.signature import ValuePlant, discovered
from parity.lora.adapter import LoraAdapter
from parity.lora.apply import applied
from parity.pair import Build, ModelPair


@dataclass
class Planted:
    """A pair whose native is wrong.

    Args:
        pair: the pair. count: in a list of one, how often something was made wrong; 0 once the native has run with its
            weights and LoRA: the plant is not expressible there.
    """

    pair: ModelPair
    count: list[int]

    @property
    def expressible(self) -> bool:
        """Whether anything was made wrong by now."""
        return self.count[0] > 0


def planted(pair: ModelPair, name: str, modules: Sequence[str]) -> Planted:
    """Plant a signature into a pair.

    Args:
        pair: the pair.
        name: of the signature.
        modules: paths in the native: blocks, layers, or "" for the whole model.

    Raises:
        UsageError: no signature has that name.
        AttributeError: a path does not exist, as soon as the native is built.
    """
    plant, count = discovered()[name].plant, [0]
    if isinstance(plant, WeightPlant):
        return Planted(after_load(pair, lambda model: _edited(model, modules, plant, count)), count)
    if isinstance(plant, AdapterPlant):
        return Planted(_other_adapter(pair, modules, plant, count), count)
    wrap: Callable[[nn.Module], None]
    if isinstance(plant, OpPlant):
        wrap = _wraps_ops(plant, count)
    elif isinstance(plant, ModulePlant):
        wrap = _wraps_modules(plant, count)
    else:
        wrap = _wraps_value(plant, count)
    return Planted(_built(pair, modules, wrap), count)


def _built(pair: ModelPair, modules: Sequence[str], wrap: Callable[[nn.Module], None]) -> ModelPair:
    build = pair.native.build

    def built(wanted: Build) -> nn.Module:
        model = build(wanted)
        for path in modules:
            wrap(model.get_submodule(path))
        return model

    return replace(pair, native=replace(pair.native, build=built))


def _wraps_ops(plant: OpPlant, count: list[int]) -> Callable[[nn.Module], None]:
    def wrap(module: nn.Module) -> None:
        forward = module.forward

        def wrong(*args: Any, **kwargs: Any) -> Any:
            with PlantedOps(plant.wrong, count):
                return forward(*args, **kwargs)

        module.__dict__["forward"] = wrong

    return wrap


def _wraps_modules(plant: ModulePlant, count: list[int]) -> Callable[[nn.Module], None]:
    def wrap_one(module: nn.Module) -> None:
        forward = module.forward

        def wrong(*args: Any, **kwargs: Any) -> Any:
            given = plant.wrong(module, forward, *args, **kwargs)
            if given is UNTOUCHED:
                return forward(*args, **kwargs)
            count[0] += 1
            return given

        module.__dict__["forward"] = wrong

    def wrap(module: nn.Module) -> None:
        for chosen in plant.choose(module):
            wrap_one(chosen)

    return wrap


def _wraps_value(plant: ValuePlant, count: list[int]) -> Callable[[nn.Module], None]:
    def wrap(module: nn.Module) -> None:
        forward = module.forward

        def wrong(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            value = out if isinstance(out, Tensor) else out[0]
            given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.shape == value.shape]
            count[0] += 1
            made = plant(value, given[0] if given else value)
            return made if isinstance(out, Tensor) else type(out)((made, *out[1:]))

        module.__dict__["forward"] = wrong

    return wrap


def after_load(pair: ModelPair, edit: Callable[[nn.Module], None]) -> ModelPair:
    """Return the pair with the native's weights edited once they are loaded."""

    def load(reference: Mapping[str, Tensor], native: nn.Module) -> None:
        if pair.load is not None:
            pair.load(reference, native)
        else:
            native.load_state_dict(pair.key_map(Build()).native_tensors(reference))
        with torch.no_grad():
            edit(native)

    return replace(pair, load=load)


def _edited(model: nn.Module, modules: Sequence[str], plant: WeightPlant, count: list[int]) -> None:
    for path in modules:
        count[0] += plant.edit(model.get_submodule(path))


def _other_adapter(pair: ModelPair, modules: Sequence[str], plant: AdapterPlant, count: list[int]) -> ModelPair:
    apply = pair.native.apply_lora or applied

    def changed(model: nn.Module, adapter: LoraAdapter) -> Any:
        within = [t for t in adapter.targets if any(not m or t == m or t.startswith(f"{m}.") for m in modules)]
        if within:
            count[0] += 1
            adapter = plant.edit(adapter, within)
        return apply(model, adapter)

    return replace(pair, native=replace(pair.native, apply_lora=changed))
