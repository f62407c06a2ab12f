"""What is wrong with how a side applies a LoRA, in words: from what its layers answered.

Letters in shapes: N rows of inputs, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import KEPT_LIMIT
from parity.lora.effects import Answers, ModuleEffect, effect_of, effects, expected, wanted_changes
from parity.lora.factors import reason_for, worded_factor
from parity.lora.magnitudes import mistaken
from parity.lora.problems import Severity, some

_SAME = 0.999
"""Cosine above which two changes point one way."""


@dataclass(frozen=True)
class LoraFinding:
    """One thing that is wrong with how a side applies a LoRA.

    Args:
        code: for scripts: not_applied, partly_applied, no_values, scaling, transposed, magnitudes, wrong_module,
            otherwise, swallowed, left_behind, old_adapter, added_wrongly.
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


Kind = Literal["right", "broken", "missing", "scaled", "transposed", "magnitudes", "other"]


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
        return "right"
    if math.isnan(effect.cosine):
        return "missing"
    if mistaken(change, answers, path) is not None:
        return "magnitudes"
    if abs(effect.cosine) >= _SAME:
        return "scaled" if abs(effect.ratio - 1) > _slack(answers, path) else "right"
    if target is None or target.A.shape[1] not in answers.inputs:
        return "other"
    turned = _transposed(target, answers.inputs[target.A.shape[1]])
    return "transposed" if turned is not None and _cosine(change, turned) >= _SAME else "other"


def _slack(answers: Answers, path: str) -> float:
    own = answers.tolerance_at(path) if path in answers.doubts else answers.unit
    return max(own, 1e-5)


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


def left_behind(side: str, answers: Answers) -> list[LoraFinding]:
    """Say which layers are not what they were once the LoRA was taken off: `on` is then what came after."""
    found = [path for path in answers.off if answers.changed(path)]
    if not found:
        return []
    text = f"still there in {len(found)} layers after it was taken off: {some(found)}"
    return [LoraFinding("left_behind", side, text, modules=tuple(found))]


def after_switch(side: str, old: LoraAdapter, new: LoraAdapter, answers: Answers) -> list[LoraFinding]:
    """Say which layers the old adapter still changes after a switch to the new one."""
    former, wanted = {*old.targets, *old.changes}, {*new.targets, *new.changes}
    stale = [p for p in answers.on if p in former and p not in wanted and answers.changed(p)]
    both = _both(old, new, answers)
    if not stale and not both:
        return []
    text = f"after a switch the old adapter is still merged in {len(stale) + len(both)} layers"
    return [LoraFinding("old_adapter", side, f"{text}: {some([*stale, *both])}", modules=(*stale, *both))]


def _both(old: LoraAdapter, new: LoraAdapter, answers: Answers) -> list[str]:
    """Return layers of both adapters that hold the sum of the two."""
    found = []
    for path in set(old.targets) & set(new.targets):
        change, x = answers.change(path), answers.inputs.get(new.targets[path].A.shape[1])
        if x is None or path in answers.wanted:
            continue
        together = expected(old.targets[path], x) + expected(new.targets[path], x)
        if change is not None and effect_of(change, together).rel_l2 <= answers.tolerance:
            found.append(path)
    return sorted(found)


def added(side: str, adapters: Iterable[LoraAdapter], answers: Answers) -> list[LoraFinding]:
    """Say where several adapters that are on at once do not change a layer by the sum of what each does."""
    wrong: dict[str, float] = {}
    sums: dict[str, Tensor] = {}
    for adapter in adapters:
        for path, target in adapter.targets.items():
            if target.magnitude is not None:
                return []  # lengths are of the weight as changed by both
            if path in answers.wanted or target.A.shape[1] not in answers.inputs:
                continue  # changed in full, too
            part = expected(target, answers.inputs[target.A.shape[1]])
            sums[path] = sums[path] + part if path in sums else part
    for path, wanted in sums.items():
        change = answers.change(path)
        if change is not None and (away := effect_of(change, wanted).rel_l2) > answers.tolerance:
            wrong[path] = away
    if not wrong:
        return []
    text = f"two adapters at once are not the sum of both in {len(wrong)} of {len(sums)} layers"
    worst = max(wrong, key=lambda name: wrong[name])
    message = f"{text}: {100 * wrong[worst]:.3g} % off in {worst}"
    return [LoraFinding("added_wrongly", side, message, modules=tuple(wrong))]
