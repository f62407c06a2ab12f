"""A whole proposal: from two factories to key map, inputs, calls and taps with their evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import KeyMapError, ParityError, UsageError
from parity.pair import Build
from parity.scaffold.adopt import adopted, adopted_keys, with_ties_declared
from parity.scaffold.confirm import confirmed
from parity.scaffold.inputs import Arguments, Proposed, arguments_of, proposed_inputs
from parity.scaffold.keys import propose_keys
from parity.scaffold.layouts import ROUNDING
from parity.scaffold.masks import masked
from parity.scaffold.outputs import Picked
from parity.scaffold.points import by_structure, by_value
from parity.scaffold.proposal import KeyProposal
from parity.scaffold.sides import Factory, called_with, resolved
from parity.scaffold.stacks import Group, groups_of
from parity.scaffold.structure import Tree, check_depths, module_pairs, tree_of
from parity.scaffold.taps import Spec, all_taps, specs_of
from parity.scaffold.ties import ties_of, with_ties
from parity.scaffold.trial import Call, Trial, attempted, failing
from parity.scaffold.values import value_matches
from parity.weights.draw import draw_weights
from parity.weights.load import tensors_of


@dataclass(frozen=True)
class Request:
    """What a port author names.

    Args:
        name: the pair's name.
        reference, native: what gives the models.
        mapping, converter: an existing key map. inputs: "module:function" that draws inputs.
    """

    name: str
    reference: Factory
    native: Factory
    mapping: str | None = None
    converter: str | None = None
    inputs: str | None = None


@dataclass(frozen=True)
class Proposal:
    """What is proposed for a pair.

    Args:
        request: what was asked.
        models: reference and native.
        keys: the key map. map_source: "module:name" of an existing one.
        loaded: both sides hold their values by themselves.
        inputs: proposed inputs; None where a function draws them.
        arguments: how each side is called; None where a function does.
        picked: how each side's output is picked; None where nothing ran.
        taps: the taps. distances: of each in lockstep, by tap name.
        output_distance: how far the outputs of a free run lie apart; None where nothing ran.
        why_not_run: why nothing ran, in words; None where it did.
        low_fails: which side does not run in bfloat16, in words.
    """

    request: Request
    models: tuple[nn.Module, nn.Module]
    keys: KeyProposal
    map_source: str | None
    loaded: bool
    inputs: Proposed | None
    arguments: tuple[Arguments | None, Arguments | None]
    picked: tuple[Picked, Picked] | None
    taps: tuple[Spec, ...]
    distances: Mapping[str, float]
    output_distance: float | None
    why_not_run: str | None
    low_fails: str | None = None


def propose(request: Request) -> Proposal:
    """Build both models, propose a key map, run both, and propose taps.

    Raises:
        ParityError: a factory, mapping, converter or inputs function is not there or does not work.
    """
    models = request.reference.model(), request.native.model()
    if type(models[0]) is type(models[1]):
        own = type(models[0]).__qualname__
        raise UsageError(f"both sides give a {own}: a model compared with itself always agrees")
    existing = adopted(request.mapping, request.converter)
    trees = tree_of(models[0]), tree_of(models[1])
    check_depths(*trees)
    keys, loaded = _keys(models, trees, existing)
    if not loaded:
        _drawn(request, models)
    inputs = None if request.inputs else proposed_inputs(*models)
    drawn = _inputs_of(request, inputs)
    arguments = _arguments(request, models, drawn)
    trial, why = _trial(request, models, drawn, arguments, loaded, keys)
    if trial is not None:
        arguments, trial, why = _with_reshapes(arguments, trial, why)
    if keys.existing is None or keys.problems:
        keys = confirmed(keys, trial)
    if trial is not None:
        keys = replace(keys, idle=trial.idle(keys))
    pairs = module_pairs(keys.matches, *trees)
    specs, picked, (distances, apart) = _taps(trial, keys, pairs, trees)
    source = existing[2] if existing is not None else None
    low = None if trial is None else _failing_low(request, trial)
    return Proposal(request, models, keys, source, loaded, inputs, arguments, picked, specs, distances, apart, why, low)


def _keys(
    models: tuple[nn.Module, nn.Module], trees: tuple[Tree, Tree], existing: Any
) -> tuple[KeyProposal, bool]:
    """Propose the key map; say whether both sides hold the same values by themselves."""
    held = tensors_of(models[0]), tensors_of(models[1])
    ties = ties_of(held[0]), ties_of(held[1])
    groups = _groups(held, trees)
    known = value_matches(groups[0], groups[1], *held)
    keys = propose_keys(groups[0], groups[1], known)
    if any(ties):
        free = [{k: v for k, v in h.items() if k not in t} for h, t in zip(held, ties, strict=True)]
        untied = _groups(free, trees)
        bare = propose_keys(untied[0], untied[1], value_matches(untied[0], untied[1], *free))
        keys = with_ties(keys, bare, *ties)
    if existing is not None:
        shapes = {key: value.shape for key, value in held[0].items()}
        keys = adopted_keys(with_ties_declared(existing, ties[0], shapes), groups[0], groups[1], keys)
    return keys, bool(known)


def _groups(held: Sequence[Mapping[str, Tensor]], trees: tuple[Tree, Tree]) -> list[list[Group]]:
    sides = zip(held, trees, ("reference", "native"), strict=True)
    return [groups_of(tensors, tree.stacks, side) for tensors, tree, side in sides]


def _drawn(request: Request, models: tuple[nn.Module, nn.Module]) -> None:
    """Give the models weights that tell; the native others than the reference, so that what is not carried shows."""
    for seed, (factory, model) in enumerate(zip((request.reference, request.native), models, strict=True)):
        if seed == 1 or not factory.takes_build:
            draw_weights(model, seed)


def _inputs_of(request: Request, inputs: Proposed | None) -> dict[str, Any]:
    if request.inputs is None:
        return inputs.draw() if inputs is not None else {}
    function = resolved(request.inputs)
    try:
        found = called_with(function, build=Build(dtype=torch.float32), seed=0)
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UsageError(f"{request.inputs} raised {words}") from error
    if not isinstance(found, Mapping):
        raise UsageError(f"{request.inputs} gives a {type(found).__name__}\nvalid: a dict from name to tensor or value")
    return dict(found)


def _arguments(
    request: Request, models: tuple[nn.Module, nn.Module], drawn: Mapping[str, Any]
) -> tuple[Arguments | None, Arguments | None]:
    found = [
        None if factory.call else arguments_of(model, drawn)
        for factory, model in zip((request.reference, request.native), models, strict=True)
    ]
    return found[0], found[1]


def _trial(
    request: Request, models: tuple[nn.Module, nn.Module], drawn: Mapping[str, Any],
    arguments: tuple[Arguments | None, Arguments | None], loaded: bool, keys: KeyProposal,
) -> tuple[Trial | None, str | None]:  # fmt: skip
    """Return a trial and what goes wrong in it; no trial where the calls or weights are not known."""
    for side, found in zip(("reference", "native"), arguments, strict=True):
        if found is not None and found.missing:
            return None, f"the {side}'s forward needs {', '.join(found.missing)}"
    factories = request.reference, request.native
    calls = [_call(f, a) for f, a in zip(factories, arguments, strict=True)]
    trial = Trial(*models, calls=(calls[0], calls[1]), inputs=drawn, loaded=loaded)
    try:
        trial.carry(keys)
    except KeyMapError as error:
        return None, f"the weights cannot be carried over: {str(error).splitlines()[0]}"
    return trial, attempted(trial)


def _failing_low(request: Request, trial: Trial) -> str | None:
    """Run each side as deployed, in bfloat16; return which one does not run, in words."""
    factories = request.reference, request.native
    for side, factory, call in zip(("reference", "native"), factories, trial.calls, strict=True):
        model = factory.model(torch.bfloat16)
        if (wrong := failing(lambda call=call, model=model: call(model, trial.inputs))) is not None:  # type: ignore[misc]
            return f"the {side} does not run in bfloat16: {wrong}"
    return None


def _call(factory: Factory, arguments: Arguments | None) -> Call:
    if arguments is not None:
        return arguments.call
    found: Call = resolved(factory.call or "")
    return found


def _with_reshapes(
    arguments: tuple[Arguments | None, Arguments | None], trial: Trial, why: str | None
) -> tuple[tuple[Arguments | None, Arguments | None], Trial | None, str | None]:
    """Try the text with one axis more on a side that does not run; give the trial up where nothing helps."""
    for side, name in enumerate(("the reference", "the native")):
        here = arguments[side]
        if why is None or not why.startswith(name) or here is None or "text" not in here.given.values():
            continue
        other = replace(here, reshapes=frozenset({"text"}))
        calls = (other.call, trial.calls[1]) if side == 0 else (trial.calls[0], other.call)
        again = replace(trial, calls=calls)
        if (left := attempted(again)) is None or not left.startswith(name):
            arguments = (other, arguments[1]) if side == 0 else (arguments[0], other)
            trial, why = again, left
    return arguments, (trial if why is None else None), why


def _taps(
    trial: Trial | None, keys: KeyProposal, pairs: Mapping[str, str], trees: tuple[Tree, Tree]
) -> tuple[tuple[Spec, ...], tuple[Picked, Picked] | None, tuple[dict[str, float], float | None]]:
    if trial is None:
        return tuple(specs_of(by_structure(pairs, trees, None), pairs, *trees)), None, ({}, None)
    trial.carry(keys)
    seen = trial.reference_seen().points, trial.native_seen().points
    shared = by_value(*seen) + by_structure(pairs, trees, seen)
    specs = tuple(specs_of(shared, pairs, *trees))
    picked = trial.outputs()
    if picked is None:
        return specs, None, ({}, None)
    specs = tuple(masked(spec, trial) for spec in specs)
    if agrees(trial.output_distance(picked)):  # both are one function: where modules that stand in differ, they are two
        specs = tuple(spec for spec in specs if spec.by_value)
    try:
        return specs, picked, trial.distances(all_taps(specs), picked)
    except ParityError:
        return tuple(s for s in specs if s.by_value), picked, ({}, None)


def agrees(apart: float | None) -> bool:
    """Say whether a distance is rounding only."""
    return apart is not None and apart < ROUNDING
