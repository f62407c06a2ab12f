"""What a run keeps of a loaded pair: what was built, from where, with which weights. Holds no tensor and no model."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parity.case import absent_taps
from parity.errors import ParityError, TapError, UsageError, WrongSource
from parity.execution.passes import OUTPUT
from parity.execution.tap import Tap
from parity.io.hashing import hash_weights
from parity.io.sources import check_imported_from, describe_source
from parity.loaded import LoadedSide
from parity.pair import Build, ModelPair, Side, in_variant, known_expired, known_now, variants_of
from parity.session import PairSession
from parity.weights.load import WeightComparison, tensors_of, weight_differences


@dataclass(frozen=True)
class TapPlace:
    """Where a tap is: its place in execution order and its path on each side."""

    order: int
    reference: str
    native: str
    wrong: tuple[WeightComparison, ...]
    """Weights of the native's module that are not the reference's."""


@dataclass(frozen=True)
class About:
    """A pair as it was loaded.

    Args:
        record: what all its states share in a record.
        taps: taps both sides have, by name.
        known: accepted precision differences, by tap or kind of tap.
    """

    record: dict[str, Any]
    taps: Mapping[str, TapPlace]
    known: Mapping[str, str] = field(default_factory=dict)


def about(session: PairSession) -> About:
    """Describe a loaded pair.

    Raises:
        WrongSource: a side does not run the code the pair declares.
        TapError: no tap exists on both sides, or the output is not among them.
        UsageError: `known` or `declared` names no tap.
    """
    reference = about_side(session.reference) if session.recorded is None else dict(session.recorded.about)
    native = about_side(session.native)
    check_taps(session)
    wrong = [w for w in session.weights.values() if w.differs]
    places = places_of(session.pair, session.build, wrong)
    return About(_record(session, reference, native), places, known_now(session.pair, session.build))


def check_taps(session: PairSession) -> None:
    """Check that the output is judged, and that what is accepted names taps: a misspelt one would accept nothing.

    Raises:
        TapError: no tap exists on both sides, or the output is not among them.
        UsageError: `known` or `declared` names no tap.
    """
    pair, taps = session.pair, [t for t in session.taps if t.reference and t.native]
    if not taps:
        raise TapError(f"{pair.name}: no tap exists on both sides; nothing would be compared")
    if OUTPUT not in {t.name for t in taps}:
        raise TapError(
            f"{pair.name}: there is no tap {OUTPUT!r}: what differs behind the last tap would not be seen\n"
            f"add Tap({OUTPUT!r}, Point(''), Point(''), replace=False, channel_dim=1)"
        )
    names, kinds = {t.name for t in session.taps}, {t.kind for t in session.taps}
    for field_name, given, valid in (
        ("known", pair.known(session.build), names | kinds), ("declared", pair.declared, names)
    ):  # fmt: skip
        for name in given:
            if name not in valid:
                raise UsageError.unknown(f"tap in `{field_name}` of {pair.name}", name, valid)


def places_of(pair: ModelPair, build: Build, wrong: list[WeightComparison]) -> dict[str, TapPlace]:
    """Return where every tap both sides have is, those of lanes behind the pair's own."""
    taps = {t.name: t for variant in variants_of(pair) for t in in_variant(pair, variant).taps(build)}
    return {t.name: place_of(n, t, wrong) for n, t in enumerate(taps.values()) if t.reference and t.native}


def place_of(order: int, tap: Tap, wrong: list[WeightComparison]) -> TapPlace:
    """Return where a tap both sides have is, with the wrong weights of the native's module there."""
    assert tap.reference is not None
    assert tap.native is not None
    under = f"{tap.native.module}." if tap.native.module else None
    mine = tuple(w for w in wrong if under is not None and w.native_key.startswith(under))
    return TapPlace(order, tap.reference.path, tap.native.path, mine)


def _record(session: PairSession, reference: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    pair, build = session.pair, session.build
    return {
        "size": build.size,
        "dtype": str(build.dtype).removeprefix("torch."),
        "device": str(build.device),
        "weights_seed": build.seed,
        "reference": reference["side"],
        "native": native["side"],
        "substitutes": sorted({*reference["substitutes"], *native["substitutes"]}),
        "absent_taps": absent_taps(session.taps),
        "declared": dict(pair.declared),
        "known_expired": known_expired(pair, build),
        "weight_differences": weight_differences(session.weights),
        "weights": weights_covered(session),
        "stored_weight_rounding": sum(w.finer is not None or w.native_finer for w in session.weights.values()),
        "shared_code": shared_code(pair.reference.source.module, reference["classes"], session.native.model),
        "blind_spots": [*reference["blind_spots"], *native["blind_spots"]],
    }


def weights_covered(session: PairSession) -> dict[str, Any]:
    """Count the native's tensors by how they compare with the reference's, and name those one side alone has."""
    found = session.weights.values()
    plan = session.key_plan
    return {
        "compared": len(session.weights),
        "equal": sum(w.equal and w.finer is None for w in found),
        "rounded": sum((w.equal and w.finer is not None) or w.native_finer for w in found),
        "different": sum(w.differs for w in found),
        "reference_only": dict(plan.reference_only),
        "native_only": dict(plan.native_only),
    }


def about_side(loaded: LoadedSide) -> dict[str, Any]:
    """Describe one side: what a record keeps of it, what stands in for missing parts, what its weights cannot show.

    Raises:
        WrongSource: it does not run the code the pair declares.
    """
    check_source(loaded)
    return {
        "side": _side(loaded),
        "substitutes": sorted(loaded.side.substitutes()),
        "blind_spots": blind_spots(loaded.label, loaded.model),
        "classes": sorted({_named(type(m)) for m in loaded.model.modules()}),
    }


def _side(loaded: LoadedSide) -> dict[str, Any]:
    weights = tensors_of(loaded.model)
    dtypes = sorted({str(w.dtype).removeprefix("torch.") for w in weights.values()})
    return {
        "name": loaded.side.name,
        "source": _source(loaded.side),
        "class": type(loaded.model).__qualname__,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "dtypes": dtypes,
        "weights": hash_weights(weights),
    }


def _source(side: Side) -> dict[str, Any]:
    try:
        return dict(describe_source(side.source.module, side.source.distribution, side.source.checkout))
    except ParityError as error:
        return {"module": side.source.module, "unknown": str(error).splitlines()[0]}


def check_source(loaded: LoadedSide) -> None:
    """Check that a side runs the code it declares: a class of the declared module, imported from the named checkout.

    Raises:
        WrongSource: it does not.
    """
    source = loaded.side.source
    running = {type(m).__module__ for m in loaded.model.modules()}
    if not any(module == source.module or module.startswith(source.module + ".") for module in running):
        own = type(loaded.model)
        raise WrongSource(
            f"the {loaded.label} {loaded.side.name!r} runs {own.__qualname__} of {own.__module__}, "
            f"and no class of {source.module}, which the pair declares\n"
            "name the module that is to be judged in Source(module=...), or mend what `build` imports"
        )
    checkout = os.environ.get(source.checkout or "", "")
    if checkout and not source.bundled:
        check_imported_from(source.module, Path(checkout).expanduser())


def shared_code(module: str, theirs: Collection[str], native: nn.Module) -> list[str]:
    """Say which classes of the reference's package both sides run: a port that imports a part proves nothing of it.

    `module` is where the reference's code comes from, `theirs` the classes it runs, by full name; classes of other
    packages, torch's first, are nobody's port.
    """
    package = module.partition(".")[0]
    found: dict[str, str] = {}
    for path, part in native.named_modules():
        name = _named(type(part))
        if name in theirs and name.partition(".")[0] == package != "torch":
            found.setdefault(name, path)
    return [f"{name} (native: {path})" for name, path in found.items()]


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def blind_spots(side: str, model: nn.Module) -> list[str]:
    """Say which bugs these weights cannot show: gains all 1, biases all 0, float32 values that bfloat16 holds."""
    named = list(model.named_parameters())
    gains = [p for n, p in named if p.dim() == 1 and n.endswith("weight")]
    biases = [p for n, p in named if n.endswith("bias")]
    wide = [p for _, p in named if p.dtype == torch.float32 and p.numel() > 1]
    if 2 * sum(p.numel() for p in wide) < sum(p.numel() for _, p in named):
        wide = []  # deployed in 16 bits with a few float32 modules: those hold what the checkpoint held
    found = []
    if gains and all(_all(p, 1.0) for p in gains):
        found.append(f"{side}: all {len(gains)} norm gains are exactly 1: a dropped or misplaced gain cannot show")
    if biases and all(_all(p, 0.0) for p in biases):
        found.append(f"{side}: all {len(biases)} biases are exactly 0: a dropped bias cannot show")
    if wide and all(bool((p == p.bfloat16()).all()) for p in wide):
        found.append(f"{side}: all float32 weights are exactly representable in bfloat16: a down-cast cannot show")
    return found


def _all(parameter: Tensor, value: float) -> bool:
    return bool((parameter == value).all())
