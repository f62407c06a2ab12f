"""Whether a LoRA fits a model, from shapes alone, and what to change where it does not."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from parity.lora.base import Base
from parity.lora.formats.summary import BIAS_BESIDE
from parity.lora.loaded import LoadedLora, Target
from parity.lora.problems import Problem, error, some, warning


@dataclass
class Fit:
    """Which targets have their module in the model.

    `wrong` are those of another shape, with the model's; `turned` those whose A and B are each transposed on a square
    weight: their product is rank by rank, and their rank the weight's width.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    turned: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


def fit(lora: LoadedLora, base: Base) -> Fit:
    """Compare every target with the model's module of that name."""
    found = Fit()
    for target in lora.targets.values():
        _place(target, base, found)
    found.problems += _about_full(lora, base, found)
    biases, missing = _about_biases(lora, base, found), _about_missing(found, base, lora.prefix)
    found.problems += [*biases, *missing, *_about_shapes(found)]
    if not found.matched and not found.wrong:
        text = f"none of the {len(lora.targets)} modules of the LoRA is in the model: loaders would change nothing"
        found.problems.insert(0, error("no_module_matched", f"{text}{_way_out(found, base, lora.prefix)}"))
    return found


def _place(target: Target, base: Base, found: Fit) -> None:
    wanted = base.weight(target.module)
    if wanted is None:
        found.missing.append(target.module)
    elif wanted != target.shape and _has_weight(target):
        found.wrong[target.module] = (target.shape, wanted)
        if wanted == (target.r, target.r) and target.shape[0] == target.shape[1]:
            found.turned.add(target.module)
    else:
        found.matched.append(target.module)


def _about_full(lora: LoadedLora, base: Base, found: Fit) -> Iterator[Problem]:
    """Name changes in full whose shape is another than the tensor's, though the sizes fit."""
    wrong = [text for module in found.matched if (text := _other_shape(lora.targets[module], base))]
    if wrong:
        yield error("shape_mismatch", f"{len(wrong)} changes in full have other shapes: {wrong[0]}")


def _other_shape(target: Target, base: Base) -> str:
    there = base.shapes.get(f"{target.module}.weight", base.shapes.get(target.module))
    for role in ("diff", "diff_m", "set_weight"):
        if role in target.extras and there is not None and (size := target.extras[role]().shape) != there:
            return f"{target.module} is {list(size)}, the tensor {list(there)}"
    return ""


def _has_weight(target: Target) -> bool:
    """Whether the shape is that of a weight's change; a bias of its own says nothing of the weight."""
    return target.factors is not None or bool({"diff", "diff_m", "set_weight"} & set(target.extras))


def _about_biases(lora: LoadedLora, base: Base, found: Fit) -> Iterator[Problem]:
    """Name the biases that do not fit; beside a layer without one PEFT applies B's, where others drop it."""
    wrong = [text for module in found.matched for text in _wrong_biases(lora.targets[module], base)]
    if not wrong:
        return
    text = f"{len(wrong)} biases do not fit: {wrong[0]}"
    beside = lora.format in BIAS_BESIDE and all(text.endswith("none") for text in wrong)
    yield (warning if beside else error)("bias_mismatch", text)


def _wrong_biases(target: Target, base: Base) -> Iterator[str]:
    for role in ("diff_b", "set_bias"):
        if role not in target.extras:
            continue
        size, there = target.extras[role]().numel(), base.shapes.get(f"{target.module}.bias")
        if there is None or there.numel() != size:
            has = "none" if there is None else f"one of {there.numel()}"
            yield f"{target.module}: the file changes a bias of {size}, the model has {has}"


def _about_missing(found: Fit, base: Base, prefix: str) -> Iterator[Problem]:
    if not found.missing or not (found.matched or found.wrong):
        return
    count = len(found.missing) + len(found.matched) + len(found.wrong)
    last = some(sorted({module.rpartition(".")[2] for module in found.missing}), 6)
    text = f"{len(found.missing)} of {count} modules are not in the model (named {last}): {some(found.missing)}"
    yield error("missing_modules", f"{text}{_way_out(found, base, prefix)}")


def _way_out(found: Fit, base: Base, prefix: str) -> str:
    """Say what to change: a prefix, the names, or that it is another model."""
    if not found.missing:
        return ""
    first, names = found.missing[0], set(base.modules)
    parts = first.split(".")
    shorter = next((".".join(parts[n:]) for n in range(1, len(parts)) if ".".join(parts[n:]) in names), None)
    if shorter is not None:
        extra = first.removesuffix(shorter)
        text = f"\ntake {extra!r} off the names: the model has {shorter!r}"
        return f"{text}\nparity lora convert does so with --prefix {prefix}{extra}"
    longer = next((name for name in names if name.endswith(f".{first}")), None)
    if longer is not None:
        return f"\nput {longer.removesuffix(first)!r} before the names: the model has {longer!r}"
    near = difflib.get_close_matches(first, list(names)[:4096], n=1, cutoff=0.5)
    hint = f"\nnearest to {first!r}: {near[0]!r}" if near else ""
    return f"{hint}\nwhere the names are another implementation's: parity lora convert --map"


def _about_shapes(found: Fit) -> Iterator[Problem]:
    turned = {m: s for m, s in found.wrong.items() if s[0] == s[1][::-1] or m in found.turned}
    if turned:
        module, (given, wanted) = next(iter(turned.items()))
        text = f"{len(turned)} changes are transposed: {module} is {list(given)}, the weight {list(wanted)} [out, in]"
        yield error("orientation", f"{text}\nexchange A and B, each transposed")
    other = {m: sizes for m, sizes in found.wrong.items() if m not in turned}
    if other:
        module, (given, wanted) = next(iter(other.items()))
        text = f"{len(other)} modules have other sizes: {module} is {list(given)}, the weight {list(wanted)} [out, in]"
        yield error("shape_mismatch", f"{text}{_widths(other)}")


def _widths(other: dict[str, tuple[tuple[int, int], tuple[int, int]]]) -> str:
    """Name the width that differs most often."""
    counted = Counter((a, b) for given, wanted in other.values() for a, b in zip(given, wanted, strict=True) if a != b)
    (given, wanted), _ = counted.most_common(1)[0]
    return f"\nthe LoRA is of a model with {given} where this one has {wanted}: another size or another model"
