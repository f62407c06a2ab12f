"""From one dialect to another and from one model's modules to another's, with the same change of every weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.adapter import FullChange, LoraTarget
from parity.lora.base import Base
from parity.lora.check import fit
from parity.lora.compare import RTOL, Comparison, compared
from parity.lora.delta import factors_in_float64, recompressed
from parity.lora.formats.shapes import two_dimensional
from parity.lora.loaded import Factors, LoadedLora, Target
from parity.lora.mapping import map_adapter
from parity.lora.problems import some
from parity.lora.values import measured, value_problems
from parity.weights.keymap import KeyMap
from parity.weights.plan import KeyPlan, Shapes


def sound(lora: LoadedLora) -> None:
    """Refuse a file with errors: what it would become could not be proved.

    Raises:
        LoraFileError: the first of its errors.
    """
    problems = [*lora.problems, *value_problems(lora, {name: measured(t) for name, t in lora.targets.items()})]
    for problem in problems:
        if problem.severity == "error":
            raise LoraFileError(problem.code, problem.message)


def mapped(lora: LoadedLora, key_map: KeyMap, base: Base | None = None) -> LoadedLora:
    """Carry a LoRA through a key map; with the base's shapes fused layers may be targeted in part.

    Raises:
        LoraFileError: names are not resolved, or it needs the base's shapes.
        LoraError: a target is no weight of the base or has another size, or goes nowhere.
        KeyMapError: the map does not account for the keys.
    """
    if lora.underscored:
        raise LoraFileError("needs_base", "a key map needs dotted module names: name the base with --base")
    adapter = lora.adapter()
    reference = dict(base.shapes) if base is not None else _own_shapes(lora)
    native = {key: value.shape for key, value in key_map.native_tensors(_empty(reference)).items()}
    plan = key_map.plan(reference, native)
    found = map_adapter(adapter, key_map, reference, native)
    low = {module: _as_target(module, target, plan) for module, target in found.targets.items()}
    targets = with_changes(low, found.changes)
    if not targets:
        raise LoraFileError("no_targets", "the map carries no target of the LoRA over")
    return replace(lora, targets=targets, prefix="", keys={})


def with_changes(
    targets: Mapping[str, Target], changes: Mapping[str, FullChange], names: Callable[[str], str] = str
) -> dict[str, Target]:
    """Return targets with changes in full beside them, or in targets of their own; `names` gives their modules'."""
    out = dict(targets)
    for key, change in changes.items():
        path, _, leaf = key.rpartition(".")
        known = leaf in ("weight", "bias")
        module = names(path if known else key)
        role = {("weight", True): "set_weight", ("bias", True): "set_bias", ("bias", False): "diff_b"}.get(
            (leaf, change.replaces), "set_weight" if change.replaces else "diff"
        )
        held, size = out.get(module), change.value.numel()
        if held is None:
            shape = two_dimensional(change.value.shape)
            held = Target(module, shape, scaling_from="assumed", dtype=change.value.dtype)
        extras: dict[str, Callable[[], Tensor]] = {**held.extras, role: partial(_same, change.value)}
        out[module] = replace(held, extras=extras, parameters=held.parameters + size)
    return out


def _own_shapes(lora: LoadedLora) -> dict[str, torch.Size]:
    full = [target.module for target in lora.targets.values() if target.changes()]
    if full:
        text = f"changes in full need the base's shapes, name it with --base: {some(full)}"
        raise LoraFileError("needs_base", text)
    kernels = [target.module for target in lora.targets.values() if target.kernel]
    if kernels:
        raise LoraFileError("needs_base", f"convolutions need the base's shapes, name it with --base: {some(kernels)}")
    return {f"{target.module}.weight": torch.Size(target.shape) for target in lora.targets.values()}


def _empty(shapes: Shapes) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _as_target(module: str, mapped_target: LoraTarget, plan: KeyPlan) -> Target:
    target = _trimmed(mapped_target)
    key = f"{module}.weight" if f"{module}.weight" in plan.native_shapes else module
    parts = _parts(target, plan, key)
    r = target.rank // parts
    return Target(
        module, (target.B.shape[0], target.A.shape[1]), r, target.scaling * r, target.scaling, target.scaling_from,
        partial(Factors, target.A, target.B), _beside(target), tuple(plan.native_shapes[key][2:]), parts=parts,
        dtype=target.A.dtype, parameters=target.A.numel() + target.B.numel(), rank=target.rank,
        embedding=target.embedding,
    )  # fmt: skip


def _beside(target: LoraTarget) -> dict[str, Callable[[], Tensor]]:
    held = {"magnitude": target.magnitude, "diff_b": target.bias}
    return {role: partial(_same, value) for role, value in held.items() if value is not None}


def _same(value: Tensor) -> Tensor:
    return value


def _trimmed(target: LoraTarget) -> LoraTarget:
    """Leave out columns of B that are zero, with their rows of A: a cut from a block-diagonal B has its rank back."""
    used = target.B.ne(0).any(0) & target.A.ne(0).any(1)
    if bool(used.all()) or not bool(used.any()):
        return target
    return replace(target, A=target.A[used], B=target.B[:, used])


def _parts(target: LoraTarget, plan: KeyPlan, key: str) -> int:
    """Return in how many diagonal blocks of one size B lies, where layers of one rank were joined by rows."""
    pieces = plan.pieces[key]
    n, (out, rank) = len(pieces), target.B.shape
    sizes = {piece.native_stop - piece.native_start for piece in pieces}
    if n < 2 or pieces[0].native_dim or rank % n or out % n or len(sizes) > 1:
        return 1
    blocks = [part.chunk(n, 1) for part in target.B.chunk(n, 0)]
    return 1 if any(bool(blocks[i][j].any()) for i in range(n) for j in range(n) if i != j) else n


def fits(lora: LoadedLora, base: Base) -> None:
    """Refuse a LoRA that the model it is for cannot take.

    Raises:
        LoraFileError: modules are missing or have other sizes, with the dimension.
    """
    for problem in fit(lora, base).problems:
        if problem.severity == "error":
            raise LoraFileError(problem.code, problem.message)


def whole(lora: LoadedLora, dialect: str, base: Base | None) -> None:
    """Refuse to write half of a layer where layers are kept whole: PEFT's `modules_to_save`.

    Raises:
        LoraFileError: weight or bias is replaced, and the model has the other too.
    """
    for target in lora.targets.values() if dialect == "peft" and base is not None else ():
        held = {"set_weight": "weight", "set_bias": "bias"}
        own = [name for role, name in held.items() if role in target.extras]
        there = [name for name in held.values() if base is not None and f"{target.module}.{name}" in base.shapes]
        missing = [name for name in there if name not in own]
        if own and missing and target.factors is None:
            text = f"PEFT keeps layers that are replaced whole; the file has no {missing[0]} for {target.module}"
            raise LoraFileError("cannot_hold", f"{text}\nwhat can: comfyui")


def thin(lora: LoadedLora) -> None:
    """Refuse products that are of full rank as A and B: they would be larger than the weights.

    Raises:
        LoraFileError: a Kronecker product of full rank.
    """
    full = [t.module for t in lora.targets.values() if t.rank > (t.r or 0) * t.parts and t.rank >= min(t.shape)]
    if full:
        text = f"{len(full)} products are of full rank, A and B would be larger than the weight: {some(full)}"
        raise LoraFileError("full_rank", f"{text}\nrecompress them, with loss, by --rank")


def recompress(lora: LoadedLora, rank: int) -> tuple[LoadedLora, dict[str, float]]:
    """Return the nearest LoRA of a lower rank, and the relative error of each target that loses something."""
    targets, errors = {}, {}
    for module, target in lora.targets.items():
        factors = factors_in_float64(target)
        if factors is None or target.rank <= rank:
            targets[module] = target
            continue
        smaller, errors[module] = recompressed(factors, rank)
        kept = Factors(*(value.to(_stored(target.dtype)) for value in smaller))
        targets[module] = replace(
            target, r=rank, rank=rank, lora_alpha=float(rank), scaling=1.0, factors=partial(Factors, *kept), parts=1
        )
    return replace(lora, targets=targets), errors


def _stored(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32


def proved(wanted: LoadedLora, read_back: Callable[[], LoadedLora]) -> Comparison:
    """Read back what was written and compare it with what it should be.

    Raises:
        LoraFileError: it changes a weight otherwise.
    """
    found = read_back()
    comparison = compared(wanted, found, RTOL)
    broken = [problem for problem in found.problems if problem.severity == "error"]
    if comparison.verdict != "same" or broken:
        where = some([*comparison.apart, *comparison.missing_keys, *comparison.unexpected_keys]) or broken[0].message
        text = f"what was written does not read back as the same LoRA: {where}"
        raise LoraFileError("not_proved", f"{text}\nnothing is kept")
    return comparison
