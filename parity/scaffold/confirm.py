"""Decide by running what names leave open: the one assignment under which more of both models agrees.

Layers are tried with all their tensors at once, as a layer with the right weight and the wrong bias agrees nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations, product

from parity.scaffold.keys import fit
from parity.scaffold.proposal import KeyProposal, Match
from parity.scaffold.stacks import Group
from parity.scaffold.trial import Trial

MOST = 64
"""Assignments tried for layers of one shape, with square matrices as they are and transposed; more stay blank."""

Layer = tuple[Group, ...]


def confirmed(keys: KeyProposal, trial: Trial | None) -> KeyProposal:
    """Return the proposal with nothing uncertain in it: confirmed by a run, or blank.

    A rename of a square matrix that agrees only transposed becomes one.
    """
    sure = _sure(keys)
    if trial is None:
        return sure
    before = None
    while before != len(sure.matches):  # what is decided upstream lets more be decided downstream
        before = len(sure.matches)
        for refs, natives in _open_layers(sure):
            sure = _decided(sure, refs, natives, trial)
        sure = _fused(sure, trial)
    return _transposed(sure, trial)


def _sure(keys: KeyProposal) -> KeyProposal:
    """Move what is uncertain to the blanks, with the other tensors of such a layer: they followed it."""
    layers = {_layers_of(m) for m in keys.matches if not m.certain}
    doubtful = [m for m in keys.matches if _layers_of(m) in layers]
    return replace(
        keys,
        matches=[m for m in keys.matches if m not in doubtful],
        reference_blank=[*keys.reference_blank, *(g for m in doubtful for g in m.reference)],
        native_blank=[*keys.native_blank, *(g for m in doubtful for g in m.native)],
    )


def _layers_of(match: Match) -> tuple[str, ...]:
    return tuple(g.owner for g in (*match.reference, *match.native))


def _open_layers(keys: KeyProposal) -> Iterator[tuple[list[Layer], list[Layer]]]:
    """Yield layers without a proposal that could be each other: those of both sides that fit."""
    refs, natives = _layers(keys.reference_blank), _layers(keys.native_blank)
    while refs:
        theirs = [n for n in natives if _fitted(refs[0], n)]
        mine = [r for r in refs if any(_fitted(r, n) for n in theirs)] or refs[:1]
        refs = [r for r in refs if r not in mine]
        natives = [n for n in natives if n not in theirs]
        if theirs:
            yield mine, theirs


def _layers(groups: Sequence[Group]) -> list[Layer]:
    owners = dict.fromkeys(group.owner for group in groups)
    return [tuple(sorted((g for g in groups if g.owner == o), key=lambda g: g.leaf)) for o in owners]


def _fitted(r: Layer, n: Layer) -> list[Match] | None:
    """Return the matches of a layer's tensors, None where one does not fit."""
    hows = [(a, b, fit(a, b)) for a, b in zip(r, n, strict=False)]
    found = [Match("rename", (a,), (b,), "", **how) for a, b, how in hows if how is not None]
    return found if len(found) == len(r) == len(n) else None


def _decided(keys: KeyProposal, refs: list[Layer], natives: list[Layer], trial: Trial) -> KeyProposal:
    few, many = (refs, natives) if len(refs) <= len(natives) else (natives, refs)
    sets = [s for order in permutations(many, len(few)) for s in _assigned(few, order, turned=few is natives)]
    return keys if len(sets) > MOST else _best(keys, sets, trial)


def _best(keys: KeyProposal, sets: Sequence[list[Match]], trial: Trial) -> KeyProposal:
    """Take the one set of matches under which most values agree, if it is one and more agree than without it."""
    scored = [(trial.score(with_matches(keys, s)), s) for s in sets]
    scored.sort(key=lambda item: -item[0])
    before = trial.score(keys)
    runner_up = max(before, scored[1][0] if len(scored) > 1 else before)
    if not scored or scored[0][0] <= runner_up:
        return keys
    said = f"decided by a run: {scored[0][0] - runner_up} more values agree"
    return with_matches(keys, [replace(m, evidence=said) for m in scored[0][1]])


def _assigned(few: Sequence[Layer], chosen: Sequence[Layer], turned: bool) -> list[list[Match]]:
    """Return the matches of an assignment, once with each choice of which square matrices are transposed."""
    found = [_fitted(b, a) if turned else _fitted(a, b) for a, b in zip(few, chosen, strict=True)]
    if any(f is None for f in found):
        return []
    choices = [[f, _turned(f)] if any(map(_is_square, f)) else [f] for f in found if f]
    return [[match for layer in chosen_ones for match in layer] for chosen_ones in product(*choices)]


def _turned(matches: Sequence[Match]) -> list[Match]:
    return [replace(m, transpose=not m.transpose) if _is_square(m) else m for m in matches]


def _is_square(match: Match) -> bool:
    shape = match.reference[0].shape
    return match.kind == "rename" and len(shape) == 2 and shape[0] == shape[1]


def _fused(keys: KeyProposal, trial: Trial) -> KeyProposal:
    """Cut or join layers without a proposal, where rows add up and a run agrees in more values."""
    for split in (True, False):
        whole, parts = (keys.reference_blank, keys.native_blank) if split else (keys.native_blank, keys.reference_blank)
        for layer in _layers(whole):
            sets = [_cut(layer, run, split) for run in _runs(layer, _layers(parts))]
            keys = _best(keys, sets[:MOST], trial)
    return keys


def _runs(whole: Layer, parts: Sequence[Layer]) -> Iterator[tuple[Layer, ...]]:
    """Yield neighbouring layers whose rows add up to those of the whole; two of them also turned round."""
    fitting = [p for p in parts if len(p) == len(whole) and all(map(_could_be_rows, whole, p))]
    for start in range(len(fitting)):
        for stop in range(start + 2, len(fitting) + 1):
            run = tuple(fitting[start:stop])
            if sum(layer[-1].shape[0] for layer in run) == whole[-1].shape[0]:
                yield from (run, run[::-1]) if len(run) == 2 else (run,)


def _could_be_rows(whole: Group, part: Group) -> bool:
    shapes = whole.shape and part.shape and whole.shape[1:] == part.shape[1:] and part.shape[0] < whole.shape[0]
    return bool(shapes) and (whole.leaf, whole.indices) == (part.leaf, part.indices)


def _cut(whole: Layer, run: Sequence[Layer], split: bool) -> list[Match]:
    rows = [tuple(layer[i] for layer in run) for i in range(len(whole))]
    if split:
        return [Match("split", (g,), parts, "") for g, parts in zip(whole, rows, strict=True)]
    return [Match("fuse", parts, (g,), "") for g, parts in zip(whole, rows, strict=True)]


def with_matches(keys: KeyProposal, more: Sequence[Match]) -> KeyProposal:
    """Return a proposal with further matches, taken from its blanks."""
    mine, theirs = {g for m in more for g in m.reference}, {g for m in more for g in m.native}
    return replace(
        keys,
        matches=[*keys.matches, *more],
        reference_blank=[g for g in keys.reference_blank if g not in mine],
        native_blank=[g for g in keys.native_blank if g not in theirs],
    )


def _transposed(keys: KeyProposal, trial: Trial) -> KeyProposal:
    """Transpose square matrices of layers that differ, where a run agrees in more values that way."""
    best = trial.score(keys)
    suspects = trial.differing_layers()
    for match in [m for m in keys.matches if _is_square(m) and _first_layer(m) in suspects]:
        how = f"{match.evidence}; a run agrees only transposed"
        turned = replace(match, transpose=not match.transpose, evidence=how)
        tried = replace(keys, matches=[turned if m is match else m for m in keys.matches])
        if (found := trial.score(tried)) > best:
            keys, best = tried, found
    trial.carry(keys)
    return keys


def _first_layer(match: Match) -> str:
    return match.native[0].keys[0].rpartition(".")[0]
