"""What is wrong with how a side applies a LoRA, in words: from what its layers answered.

Letters in shapes: N rows of inputs, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import KEPT_LIMIT
from parity.lora.effects import Answers, ModuleEffect, effects, wanted_changes
from parity.lora.factors import reason_for, worded_factor
from parity.lora.magnitudes import mistaken
from parity.lora.problems import Severity, some
from parity.lora.rounded import in_eight_bits, rounding_of

_SAME, _CLOSE = 0.999, 0.98
"""Cosine above which two changes point one way, and from which one may be the other with its factors rounded."""


@dataclass(frozen=True)
class LoraFinding:
    """One thing that is wrong with how a side applies a LoRA.

    Args:
        code: for scripts: not_applied, partly_applied, no_values, rounded, scaling, transposed, magnitudes,
            wrong_module, otherwise, swallowed, left_behind, old_adapter, added_wrongly.
        side: "reference" or "native".
        message: in words.
        severity: an error is another function than the file's, a warning is one of storage.
        modules: the layers.
    """

    code: str
    side: str
    message: str
    severity: Severity = "error"
    modules: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as a record holds it."""
        return {**asdict(self), "modules": list(self.modules)}


Kind = Literal["right", "broken", "missing", "rounded", "scaled", "transposed", "magnitudes", "other"]


def findings(side: str, adapter: LoraAdapter, answers: Answers) -> list[LoraFinding]:
    """Say what is wrong with a LoRA that is on a side now."""
    found = effects(adapter, answers)
    live = {path: effect for path, effect in found.items() if _is_live(path, adapter)}
    by_kind: dict[Kind, list[str]] = {}
    for path, effect in live.items():
        by_kind.setdefault(_kind(adapter.targets.get(path), effect, answers, path), []).append(path)
    meant = {*adapter.targets, *answers.wanted}
    strays = [path for path in answers.on if path not in meant and answers.changed(path)]
    return [
        *_broken(side, by_kind.get("broken", [])),
        *_missing(side, by_kind.get("missing", []), len(live)),
        *_rounded(side, by_kind.get("rounded", []), adapter, answers),
        *_scaled(side, by_kind.get("scaled", []), adapter, live),
        *_turned(side, by_kind.get("transposed", [])),
        *_unmagnified(side, by_kind.get("magnitudes", []), answers),
        *_elsewhere(side, [*by_kind.get("other", []), *strays], adapter, answers),
        *_swallowed(side, live),
    ]


def _is_live(path: str, adapter: LoraAdapter) -> bool:
    target = adapter.targets.get(path)
    return target is None or bool(target.scaling) or target.magnitude is not None


def _kind(target: LoraTarget | None, effect: ModuleEffect, answers: Answers, path: str) -> Kind:
    change = answers.change(path)
    assert change is not None
    if not bool(torch.isfinite(change).all()):
        return "broken"
    if effect.rel_l2 <= answers.tolerance_at(path) and abs(effect.ratio - 1) <= _slack(answers, path):
        # A and B in the side's own dtype are as they should be; in eight bits they are not, be it as near.
        return (
            "rounded" if effect.rel_l2 > answers.unit and in_eight_bits(_rounding(target, answers, path)) else "right"
        )
    if math.isnan(effect.cosine):
        return "missing"
    if mistaken(change, answers, path) is not None:
        return "magnitudes"
    if effect.cosine >= _CLOSE and _rounding(target, answers, path):
        return "rounded"
    if abs(effect.cosine) >= _SAME:
        return "scaled" if abs(effect.ratio - 1) > _slack(answers, path) else "right"
    if target is None or target.A.shape[1] not in answers.inputs:
        return "other"
    turned = _transposed(target, answers.inputs[target.A.shape[1]])
    return "transposed" if turned is not None and _cosine(change, turned) >= _SAME else "other"


def _slack(answers: Answers, path: str) -> float:
    own = answers.tolerance_at(path) if path in answers.doubts else answers.unit
    return max(own, 1e-5)


def _rounding(target: LoraTarget | None, answers: Answers, path: str) -> str:
    """Say how a side rounded the factors of a target, "" where that is not what it did."""
    change = answers.change(path)
    plain = target is not None and target.magnitude is None and target.bias is None and path not in answers.wanted
    x = answers.inputs.get(target.A.shape[1]) if target is not None and plain else None
    if target is None or x is None or change is None or target.embedding:
        return ""
    return rounding_of(target, x.double(), change.double())


def _rounded(side: str, paths: list[str], adapter: LoraAdapter, answers: Answers) -> Iterator[LoraFinding]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(_rounding(adapter.targets.get(path), answers, path), []).append(path)
    for words, same in groups.items():
        text = f"{words} in {len(same)} of {len(adapter.targets)} layers: {some(same)}"
        yield LoraFinding("rounded", side, text, "warning", tuple(same))


def _unmagnified(side: str, paths: list[str], answers: Answers) -> Iterator[LoraFinding]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        change = answers.change(path)
        assert change is not None
        groups.setdefault(mistaken(change, answers, path) or "", []).append(path)
    for words, same in groups.items():
        text = f"magnitudes (DoRA) {words} in {len(same)} layers: {some(same)}"
        yield LoraFinding("magnitudes", side, text, modules=tuple(same))


def _transposed(target: LoraTarget, x: Tensor) -> Tensor | None:
    """Return what the transposed change would add; None where it does not fit. Shapes: x [N, I] to [N, O]."""
    A, B = target.A.to(x), target.B.to(x)
    return (x @ B) @ A * target.scaling if A.shape[1] == B.shape[0] else None


def _cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float((a * b).sum()) / size if size and a.shape == b.shape else 0.0


def _broken(side: str, paths: list[str]) -> Iterator[LoraFinding]:
    if paths:
        text = f"without values in {len(paths)} layers, which give NaN: {some(paths)}"
        yield LoraFinding("no_values", side, text, modules=tuple(paths))


def _missing(side: str, missing: list[str], count: int) -> Iterator[LoraFinding]:
    if not missing:
        return
    if len(missing) == count:
        yield LoraFinding("not_applied", side, f"applied to none of its {count} layers", modules=tuple(missing))
        return
    text = f"applied to {count - len(missing)} of {count} layers, not to {some(missing)}"
    yield LoraFinding("partly_applied", side, text, modules=tuple(missing))


def _scaled(
    side: str, paths: list[str], adapter: LoraAdapter, found: Mapping[str, ModuleEffect]
) -> Iterator[LoraFinding]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(f"{found[path].ratio:.3g}", []).append(path)
    for same in sorted(groups.values(), key=len, reverse=True)[:3]:
        ratio = found[same[0]].ratio
        exactly = worded_factor(ratio)
        factor = exactly if exactly.startswith("exactly") else f"{ratio:.3g} x"
        text = f"scaling off by {factor} in {len(same)} of {len(found)} layers: {some(same)}"
        why = reason_for(ratio, [adapter.targets[path] for path in same if path in adapter.targets])
        yield LoraFinding("scaling", side, text + (f"; {why}" if why else ""), modules=tuple(same))


def _turned(side: str, paths: list[str]) -> Iterator[LoraFinding]:
    if paths:
        text = f"transposed in {len(paths)} layers: {some(paths)}"
        yield LoraFinding("transposed", side, text, modules=tuple(paths))


def _elsewhere(side: str, paths: list[str], adapter: LoraAdapter, answers: Answers) -> Iterator[LoraFinding]:
    """Say which layer has the change that is meant for another, and which has one that is nobody's."""
    meant = {path: source for path in paths if (source := _source(path, adapter, answers)) is not None}
    if meant:
        words = [f"{path} has what is meant for {source}" for path, source in meant.items()]
        yield LoraFinding("wrong_module", side, f"on the wrong module: {some(words, 2)}", modules=tuple(meant))
    if rest := [path for path in paths if path not in meant]:
        text = f"another change than the file's in {len(rest)} layers: {some(rest)}"
        yield LoraFinding("otherwise", side, text, modules=tuple(rest))


def _source(path: str, adapter: LoraAdapter, answers: Answers) -> str | None:
    change = answers.change(path)
    if change is None:
        return None
    for name, wanted in wanted_changes(adapter, answers):
        if name != path and wanted.shape == change.shape and _cosine(change, wanted) >= _SAME:
            return name
    return None


def _swallowed(side: str, found: Mapping[str, ModuleEffect]) -> Iterator[LoraFinding]:
    low = {path: effect.kept for path, effect in found.items() if effect.kept < KEPT_LIMIT}
    if low:
        path = min(low, key=lambda name: low[name])
        text = f"stored-weight rounding: merged, and {len(low)} of {len(found)} layers keep less than {KEPT_LIMIT:.0%}"
        where = f"{text} of the effect, {low[path]:.0%} in {path}; apply it unmerged"
        yield LoraFinding("swallowed", side, where, "warning", tuple(low))
