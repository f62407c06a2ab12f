"""Signatures: the known porting bugs, each recognised by its evidence and planted to prove it.

One registry, `SIGNATURES`; one file each below `parity/diagnose/signatures/`, which ends in `signature(...)`:

    name      of the file; what a record and the benchmark call the bug.
    category  one of `CATEGORIES`.
    freedom   how much it leaves open; of several that are seen the one with the least is named first.
    detect    from a `Seen` to what it is in words, None where it is not.
    plant     how a native is made wrong this way:
              (a) a function of a value and of what came in, which becomes the output of any module;
              (b) an `OpPlant`, `ModulePlant`, `WeightPlant` or `AdapterPlant`: an edit of the native within modules.

`parity.diagnose.planting.planted(pair, name, modules)` applies either kind to a pair. Where nothing in the modules can
be made wrong this way, the count that it returns stays 0 and the plant is not expressible there.

What a signature sees is a `Seen`: the two exact values of a faulty tap, in which a transformation is found to fifteen
digits or not at all, and what the second look found there: the repair, the nearest reference variant, the place, the
weights that are not what they should be. A signature that rests on those names a proof: the repair brings `logic_error`
below its limit, the variant is nearer to the native than the reference is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from parity.diagnose.nearest import Nearest
from parity.diagnose.places import Place
from parity.diagnose.plants import Edit
from parity.diagnose.repaired import Repair
from parity.registry import Registry, discover

CATEGORIES = (
    "precision", "rope", "norm", "attention", "activation", "modulation", "weights", "lora", "timestep", "text",
    "layout", "quant", "value",
)  # fmt: skip
"""What a signature may be about; "value" is for shapes of a difference that many bugs have."""
EXACT = 1e-9
"""Relative residual up to which a transformation counts as found; the shadows agree to about 1e-15."""
Words = str | None


@dataclass(frozen=True)
class HeldWeight:
    """A native tensor that a segment reads and that is not what the key map says.

    Args:
        name: its key. held: what it holds. expected: what it should, in the reference's dtype.
        holds: the tensor whose values it holds instead, None where it is none of the block's.
    """

    name: str
    held: Tensor
    expected: Tensor
    holds: str | None = None


@dataclass(frozen=True)
class Found:
    """What a second look found at a tap.

    Args:
        attention: whether the segment holds attention. lora: whether the LoRA is on. heads: of attention, 0: unknown.
        logic: whether the functions differ, not only the roundings.
        repair: the change of the native that restores the reference's function. nearest: the nearest reference variant.
        place: where the sides part. weights: what is wrong among the weights the segment reads.
    """

    attention: bool = False
    lora: bool = False
    heads: int = 0
    logic: bool = True
    repair: Repair | None = None
    nearest: Nearest | None = None
    place: Place | None = None
    weights: tuple[HeldWeight, ...] = ()


@dataclass(frozen=True)
class Seen:
    """The exact values of a faulty tap, and what else is known of it.

    Shapes: native, reference [..., C], float64, channels last, padding and undefined rows left out (then [T, C]);
    upstream: the reference's values of earlier taps that have this shape; computed: native and reference as computed.
    """

    native: Tensor
    reference: Tensor
    upstream: Mapping[str, Tensor] = field(default_factory=dict)
    computed: tuple[Tensor, Tensor] | None = None
    found: Found = field(default_factory=Found)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Native and reference as rows [T, C]."""
        width = self.reference.shape[-1]
        return self.native.reshape(-1, width), self.reference.reshape(-1, width)

    def holds(self, made: Tensor) -> bool:
        """Say whether the native is what was made of the reference, and the reference itself is not."""
        return made.shape == self.native.shape and close(self.native, made)


def close(a: Tensor, b: Tensor) -> bool:
    """Say whether two values are one, to fifteen digits or so."""
    size = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) <= EXACT * size if size else True


ValuePlant = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Signature:
    """One known bug; see the module.

    Args:
        name: of the file. category: one of `CATEGORIES`. freedom: how much it leaves open.
        detect: from what is seen to what it is in words, None where it is not. plant: makes a native wrong this way.
        on: which differences it speaks of: of the two functions, or of their roundings.
    """

    name: str
    category: str
    freedom: int
    detect: Callable[[Seen], Words]
    plant: ValuePlant | Edit
    on: str = "logic"


SIGNATURES: Registry[Signature] = Registry("signature")


def signature(
    name: str, category: str, freedom: int, detect: Callable[[Seen], Words], plant: ValuePlant | Edit, on: str = "logic"
) -> Signature:
    """Add a signature to the registry."""
    return SIGNATURES.add(name, Signature(name, category, freedom, detect, plant, on))


def discovered() -> Registry[Signature]:
    """Return the registry with every signature in it."""
    discover("parity.diagnose.signatures")
    return SIGNATURES


def recognised(seen: Seen) -> list[tuple[str, str]]:
    """Return the names and words of the signatures a difference has, what says most first."""
    logic = seen.found.logic
    if logic and (close(seen.native, seen.reference) or not bool((seen.native - seen.reference).isfinite().all())):
        return []
    wanted = "logic" if logic else "rounding"
    ordered = sorted((s for _, s in discovered().items() if s.on in (wanted, "both")), key=lambda s: s.freedom)
    return [(s.name, words) for s in ordered if (words := s.detect(seen)) is not None]


def repaired(bug: str) -> Callable[[Seen], Words]:
    """Return the detector that takes a repair of one kind as proof."""

    def detect(seen: Seen) -> Words:
        repair = seen.found.repair
        return repair.words if repair is not None and repair.bug == bug else None

    return detect


def rounded(kind: str, about: Callable[[Nearest], bool]) -> Callable[[Seen], Words]:
    """Return the detector that takes the nearest reference variant as proof.

    Args:
        kind: what its first edit does: "round", "low", "keep", "split" or "tf32"; "round" stands for "low" as well.
        about: whether the variant is of this bug.
    """
    kinds = ("round", "low") if kind == "round" else (kind,)

    def detect(seen: Seen) -> Words:
        nearest = seen.found.nearest
        known = nearest is not None and nearest.explains and nearest.kind in kinds and about(nearest)
        return nearest.words() if nearest is not None and known else None

    return detect
