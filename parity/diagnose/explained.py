"""What was found of differences: data for verdicts, records and words."""

from __future__ import annotations

from dataclasses import dataclass, field

from parity.diagnose.nearest import Nearest
from parity.diagnose.places import Place
from parity.diagnose.repaired import Repair
from parity.weights.load import WeightComparison


@dataclass
class Explained:
    """What was found of differences, by tap.

    Args:
        nearest: the nearest variant of the reference.
        places: where in the code the two sides part.
        wrong: weights its segment reads that are not the reference's.
        repairs: the change of the native that restores the reference's function.
        signatures: what shape the difference has, names and words, what says most first.
        missing: why neither could be had, "" where both could.
    """

    nearest: dict[str, Nearest] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    wrong: dict[str, list[WeightComparison]] = field(default_factory=dict)
    repairs: dict[str, Repair] = field(default_factory=dict)
    signatures: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    missing: str = ""
