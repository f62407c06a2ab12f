"""Take a key map over from an existing name mapping or converter function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Size

from parity.errors import KeyMapError, UsageError
from parity.scaffold.proposal import KeyProposal, Match, tied
from parity.scaffold.sides import resolved
from parity.scaffold.stacks import Group
from parity.weights.keymap import KeyMap
from parity.weights.plan import KeyPlan


def adopted(mapping: str | None, converter: str | None) -> tuple[KeyMap, str, str] | None:
    """Return the key map of what is named, its source text and the name to import; None where nothing is named.

    Args:
        mapping: "module:NAME" of a dict from regular expression to name, (name, index, count) or list of names.
        converter: "module:function" from state dict to state dict.

    Raises:
        UsageError: both are named, or what is named is neither.
    """
    if mapping and converter:
        raise UsageError("a key map comes from --mapping or from --converter, not from both")
    where = mapping or converter
    if where is None:
        return None
    held = resolved(where)
    name = where.partition(":")[2]
    if mapping:
        if not isinstance(held, Mapping):
            raise UsageError(f"{where} is a {type(held).__name__}\nvalid for --mapping: a dict from pattern to name")
        return KeyMap.from_mapping(held), f"KeyMap.from_mapping({name})", where
    if not callable(held):
        valid = "valid for --converter: a function from state dict to state dict"
        raise UsageError(f"{where} is a {type(held).__name__}\n{valid}")
    return KeyMap.from_function(_whole(held)), f"KeyMap.from_function({name})", where


def _whole(converter: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    return lambda state: dict(converter(state))


def with_ties_declared(
    found: tuple[KeyMap, str, str], ties: Mapping[str, str], reference: Mapping[str, Size]
) -> tuple[KeyMap, str, str]:
    """Return an existing map that declares the reference's second names of tensors that it reads by another name.

    Args:
        found: the map, its source text and where it is.
        ties: keys that are another key's memory, with that key.
        reference: shapes of the reference's tensors.
    """
    key_map, text, where = found
    left = set(key_map.draft(reference).unmatched) if ties else set()
    names = {key: {key, owner, *(k for k, o in ties.items() if o == owner)} for key, owner in ties.items()}
    names.update({owner: names[key] for key, owner in ties.items()})
    second = {key: min(names[key] - left) for key in names if key in left and names[key] - left}
    if not second:
        return found
    lines = [tied(key, owner) for key, owner in second.items()]
    declared = KeyMap((*(line.rule for line in lines), *key_map.rules), key_map.function)
    return declared, f"{text[:-1]}, {', '.join(line.text for line in lines)})", where


def adopted_keys(
    found: tuple[KeyMap, str, str], reference: Sequence[Group], native: Sequence[Group], otherwise: KeyProposal
) -> KeyProposal:
    """Return a proposal that uses an existing map.

    Where the map is not total, what it leaves open is said in words, and `otherwise` (from names) is used to find taps.
    """
    key_map, text, _ = found
    shapes = [{key: group.shape for group in groups for key in group.keys} for groups in (reference, native)]
    try:
        plan = key_map.plan(*shapes)
    except KeyMapError as error:
        made = {route.native for rule in key_map.rules for key in shapes[0] for route in rule.routes(key)}
        suggested = [m for m in otherwise.matches if m.certain and not made >= {k for g in m.native for k in g.keys}]
        return replace(
            otherwise, existing=(key_map, text), problems=str(error).splitlines(),
            suggested=[] if key_map.function is not None else suggested,
        )  # fmt: skip
    return KeyProposal(_matches(plan, reference, native), existing=(key_map, text))


def _matches(plan: KeyPlan, reference: Sequence[Group], native: Sequence[Group]) -> list[Match]:
    """Return what a plan does as matches; only which tensors belong together counts here."""
    homes = {key: group for group in reference for key in group.keys}
    found = []
    for group in native:
        parts = dict.fromkeys(homes[piece.reference] for piece in plan.pieces_into(group.keys[0]))
        if parts:
            found.append(Match("rename" if len(parts) == 1 else "fuse", tuple(parts), (group,), "the existing map"))
    return found


