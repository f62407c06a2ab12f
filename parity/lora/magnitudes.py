"""What a side makes of magnitudes (DoRA) instead of what the file says, in words.

Letters in shapes: N rows of inputs, O outputs of the layer.
"""

from __future__ import annotations

from torch import Tensor

from parity.lora.effects import Answers, effect_of


def mistaken(change: Tensor, answers: Answers, path: str) -> str | None:
    """Return the mistake that gives just this change; None where none that is known does. Shapes: [N, O]."""
    near = {words: effect_of(change, would).rel_l2 for words, would in answers.doubts.get(path, {}).items()}
    known = next((words for words, away in near.items() if away <= answers.tolerance_at(path)), None)
    return known or _of_others(change, answers, path)


def _of_others(change: Tensor, answers: Answers, path: str) -> str | None:
    """Say whether each output is that of the file but for its length. Shapes: [N, O]."""
    if path not in answers.directions:
        return None
    old, direction = answers.directions[path]
    found = change + old
    factor = (found * direction).sum(0) / direction.square().sum(0)
    along = float((found - factor * direction).norm()) <= answers.tolerance * float(found.norm())
    return "are others than the file's" if along else None
