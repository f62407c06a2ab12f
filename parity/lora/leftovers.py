"""What is wrong with a LoRA that was taken off, switched or put beside another: from what its layers answered.

Letters in shapes: N rows of inputs, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from parity.lora.adapter import LoraAdapter
from parity.lora.effects import Answers, effect_of, expected
from parity.lora.findings import LoraFinding
from parity.lora.problems import some


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
