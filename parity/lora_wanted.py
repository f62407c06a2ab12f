"""What a LoRA should do to a layer where the weight decides that too, or the change is in full.

Letters in shapes: N rows of inputs, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.dora import by_input, change_of
from parity.lora.effects import expected
from parity.lora.layers import quantised
from parity.lora_probes import LayerProbes, Question, ids


@dataclass(frozen=True)
class Expected:
    """What is known of these kinds before the LoRA is on; the fields are those of `Answers`."""

    wanted: dict[str, Tensor] = field(default_factory=dict)
    doubts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    directions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def wanted_by_weights(layers: LayerProbes, adapter: LoraAdapter) -> Expected:
    """Return what should change in layers and tensors of these kinds, while the LoRA is off."""
    found = Expected()
    _of_targets(layers, adapter, found)
    _of_changes(layers, adapter, found)
    return found


def _of_targets(layers: LayerProbes, adapter: LoraAdapter, found: Expected) -> None:
    modules = dict(layers.side.model.named_modules())
    for path, target in adapter.targets.items():
        if path not in layers.questions or not (target.embedding or target.magnitude is not None):
            continue
        question, layer = layers.questions[path], modules[path]
        if target.magnitude is None:
            found.wanted[path] = _at(question, layers, target.delta())
        elif not quantised(layer):
            found.wanted[path] = _changed(question, layers, layer, target)
            found.doubts[path] = dict(_mistakes(question, layers, layer, target))
            if not by_input(target):
                weight = _weight(layer)
                old, new = (_at(question, layers, value) for value in (weight, weight + target.delta().to(weight)))
                found.directions[path] = (old if target.bias is None else old - target.bias.to(old), new)


def _of_changes(layers: LayerProbes, adapter: LoraAdapter, found: Expected) -> None:
    wanted = found.wanted
    for name, place in layers.places.items():
        if place.tensor is not None and name in layers.tensors:
            wanted[name] = place.change.added_to(place.tensor).reshape(1, -1)
        elif place.path in layers.questions:
            question = layers.questions[place.path]
            before = wanted.get(place.path)
            if before is None:
                before = _low_rank(question, layers, adapter, place.path)
            old = place.tensor if place.tensor is not None and not quantised(place.layer) else torch.zeros(())
            gained = place.change.added_to(old)
            gained = gained if place.attribute == "bias" else _at(question, layers, gained)
            wanted[place.path] = before + gained
            _beside_magnitudes(place.path, gained, found)


def _beside_magnitudes(path: str, gained: Tensor, found: Expected) -> None:
    """Count a bias that is changed in full to what is expected of the layer's magnitudes."""
    if path in found.doubts:
        found.doubts[path] = {words: one + gained for words, one in found.doubts[path].items()}
    if path in found.directions:
        old, new = found.directions[path]
        found.directions[path] = (old - gained, new)


def _low_rank(question: Question, layers: LayerProbes, adapter: LoraAdapter, path: str) -> Tensor:
    target = adapter.targets.get(path)
    x = layers.exact[question.width]
    return torch.zeros((), dtype=torch.float64, device=x.device) if target is None else expected(target, x)


def _at(question: Question, layers: LayerProbes, change: Tensor) -> Tensor:
    """Return what a change of the weight adds to the answers. Shapes: change [O, I, ...] to [N, O]."""
    x = layers.exact[question.width]
    flat = change.to(x).flatten(1)
    return flat[ids(len(x), len(flat)).to(x.device)] if question.kind == "embedding" else x @ flat.t()


def _weight(layer: nn.Module) -> Tensor:
    """Return a weight in float64. Shapes: [O, I]."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().double().flatten(1)


def _changed(question: Question, layers: LayerProbes, layer: nn.Module, target: LoraTarget) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    found = _at(question, layers, change_of(target, layer.weight))
    return found if target.bias is None else found + target.bias.to(found)


def _mistakes(
    question: Question, layers: LayerProbes, layer: nn.Module, target: LoraTarget
) -> Iterator[tuple[str, Tensor]]:
    """Yield what is met: magnitudes left out, or taken over the length of the weight without its change."""
    assert target.magnitude is not None
    yield "are not used, B @ A is added alone", _changed(question, layers, layer, replace(target, magnitude=None))
    old = _weight(layer)
    length = torch.linalg.vector_norm(old, dim=0 if by_input(target) else 1, keepdim=True)
    factor = target.magnitude.to(length).reshape(length.shape) / length
    delta = target.delta().to(old.device)
    over = _at(question, layers, (old + delta) * factor - old)
    yield "are over the length of W, not of W + scaling B @ A", over
    unscaled = replace(target, scaling=0.0)
    yield "are applied, B @ A is not", _changed(question, layers, layer, unscaled)
