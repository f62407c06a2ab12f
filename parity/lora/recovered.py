"""The LoRA a loaded model really has: read off its layers, to be compared with the file before any forward.

Works on layers as PEFT injects them (`lora_A` and `lora_B` by adapter name, `scaling`), which pipelines use too. Of a
merged adapter nothing can be read; compare the weights then.
Letters in shapes: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from parity.errors import LoraFileError
from parity.lora.formats.shapes import two_dimensional
from parity.lora.loaded import Factors, LoadedLora, Target
from parity.lora.problems import Problem, error, some

_WRAPPERS = ("base_model.model.", "_orig_mod.")


def recovered(model: nn.Module, adapter_name: str = "default") -> LoadedLora:
    """Return the LoRA that was loaded into a model under a name.

    Raises:
        LoraFileError: no layer has an adapter of that name: the loader applied it to nothing.
    """
    targets: dict[str, Target] = {}
    left_out: list[str] = []
    for path, layer in model.named_modules():
        factors = _factors(layer, adapter_name)
        if factors is None:
            continue
        if factors.A.is_meta or factors.B.is_meta:
            left_out.append(path)
        else:
            name = _unwrapped(path)
            targets[name] = _target(name, factors, layer, adapter_name)
    if not targets and not left_out:
        text = f"no layer of the model has an adapter {adapter_name!r}: nothing was applied"
        raise LoraFileError("not_applied", text)
    return LoadedLora("loaded model", "", targets, {}, tuple(_problems(left_out)))


def _factors(layer: nn.Module, name: str) -> Factors | None:
    held: list[Any] = [getattr(layer, which, None) for which in ("lora_A", "lora_B")]
    if all(isinstance(one, nn.ModuleDict) and name in one for one in held):
        A, B = (one[name].weight.detach() for one in held)
        return Factors(A, B)
    table: list[Any] = [getattr(layer, f"lora_embedding_{which}", None) for which in "AB"]
    if all(isinstance(one, nn.ParameterDict) and name in one for one in table):
        entries, width = (one[name].detach() for one in table)  # [R, O], [I, R]: a table's weight has a row an entry
        return Factors(width.t(), entries.t())
    return None


def _target(name: str, factors: Factors, layer: nn.Module, adapter_name: str) -> Target:
    """Return a target that holds the layer's tensors themselves.

    Shapes: A [R, I], B [O, R].
    """
    scaling: Any = getattr(layer, "scaling", {})
    factor, r = float(scaling.get(adapter_name, 1.0)), factors.A.shape[0]
    shape = (factors.B.shape[0], two_dimensional(factors.A.shape)[1])
    flat = Factors(factors.A.flatten(1), factors.B.flatten(1))
    extras = {"diff_b": partial(_scaled, bias, factor)} if (bias := _bias(layer, adapter_name)) is not None else {}
    if (magnitude := _magnitude(layer, adapter_name)) is not None:
        extras["magnitude"] = partial(_scaled, magnitude, 1.0)
    table = isinstance(getattr(layer, "lora_embedding_A", None), nn.ParameterDict) and not _has_factors(layer)
    return Target(
        name, shape, r, factor * r, factor, "loaded", partial(Factors, *flat), extras, tuple(factors.A.shape[2:]),
        1, factors.A.dtype, factors.A.numel() + factors.B.numel(), r, table,
    )  # fmt: skip


def _has_factors(layer: nn.Module) -> bool:
    return bool(len(getattr(layer, "lora_A", ())))


def _magnitude(layer: nn.Module, name: str) -> Tensor | None:
    held: Any = getattr(layer, "lora_magnitude_vector", {})
    value = getattr(held[name], "weight", None) if name in held else None
    return value.detach() if isinstance(value, Tensor) and not value.is_meta else None


def _bias(layer: nn.Module, name: str) -> Tensor | None:
    up: Any = getattr(layer, "lora_B", {})
    bias = getattr(up[name], "bias", None) if name in up else None
    return bias.detach() if isinstance(bias, Tensor) and not bias.is_meta and bool(bias.any()) else None


def _scaled(value: Tensor, factor: float) -> Tensor:
    return value * factor


def _unwrapped(path: str) -> str:
    for wrapper in _WRAPPERS:
        path = path.removeprefix(wrapper)
    return path


def _problems(left_out: list[str]) -> list[Problem]:
    if not left_out:
        return []
    return [error("not_loaded", f"{len(left_out)} layers have an adapter without values: {some(left_out)}")]
