"""A key map as plain JSON, to be read, edited and kept: pieces, rules, and what one side lacks, with reasons."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from parity.errors import KeyMapError
from parity.weights.keymap import KeyMap, Rule, fuse, native_only, reference_only, rename, split
from parity.weights.orders import described, order_from
from parity.weights.piece import Piece
from parity.weights.rule import Permute

SCHEMA, VERSION = "dit-parity-key-map", 1
_LISTS = ("pieces", "rules")
_ONLY = ("reference_only", "native_only")
_RULES = ("rename", "split", "fuse")
_KNOWN = {"schema", "schema_version", "notes", "param_names_mapping", *_LISTS, *_ONLY}
_PLACES = ("dim", "start", "stop", "native_dim", "native_start")
_DEFAULTS: dict[str, Any] = {
    "dim": 0, "transpose": False, "permute": None, "columns": None, "view": None, "dims": [], "native_dim": 0,
    "native_start": 0, "reshape": False,
}  # fmt: skip


def encoded(
    pieces: Iterable[Piece], only: tuple[Mapping[str, str], Mapping[str, str]], notes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON of a map; `only` are the keys of one side with their reasons, `notes` by native key."""
    held = [_as_entry(piece) | ({"note": notes[piece.native]} if notes and piece.native in notes else {})
            for piece in pieces]  # fmt: skip
    return {
        "schema": SCHEMA, "schema_version": VERSION, "pieces": held,
        "reference_only": dict(only[0]), "native_only": dict(only[1]),
    }  # fmt: skip


def _as_entry(piece: Piece) -> dict[str, Any]:
    entry = {
        "reference": piece.reference, "native": piece.native, "dim": piece.dim, "start": piece.start,
        "stop": piece.stop, "transpose": piece.transpose,
        "permute": None if piece.permute is None else described(piece.permute),
        "columns": None if piece.columns is None else described(piece.columns),
        "view": None if piece.view is None else list(piece.view), "dims": list(piece.dims),
        "native_dim": piece.native_dim, "native_start": piece.native_start, "native_stop": piece.native_stop,
        "reshape": piece.reshape,
    }  # fmt: skip
    return {name: value for name, value in entry.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


def key_map_from(held: Any) -> KeyMap:
    """Return the key map that JSON describes: one of this schema, or a plain object of regex to name.

    A piece of two names only renames a whole tensor. `rules` holds objects such as {"rename": [pattern, to]},
    {"split": [pattern, [to, ...]]}, {"fuse": [[pattern, ...], to]}, with dim, sizes, transpose or reshape beside.

    Raises:
        KeyMapError: what is wrong with which entry.
    """
    if not isinstance(held, dict):
        raise KeyMapError("a key map is a JSON object")
    if "schema" not in held:
        return KeyMap.from_mapping({key: _replacement(key, to) for key, to in held.items()})
    if held["schema"] != SCHEMA or held.get("schema_version") != VERSION:
        raise KeyMapError(f"no {SCHEMA} of version {VERSION}: {held['schema']!r}, {held.get('schema_version')!r}")
    if unknown := sorted(held.keys() - _KNOWN):
        raise KeyMapError(f"a key map has no {unknown[0]!r}\nvalid: {', '.join(sorted(_KNOWN))}")
    for name, kind in (*((name, list) for name in _LISTS), *((name, dict) for name in _ONLY)):
        if not isinstance(held.get(name, kind()), kind):
            raise KeyMapError(f"{name!r} of a key map is a JSON {'array' if kind is list else 'object'}")
    pieces, rules = _pieces(held.get("pieces", []))
    rules += [_rule(entry) for entry in held.get("rules", [])]
    makers = {"reference_only": reference_only, "native_only": native_only}
    rules += [makers[n](re.escape(key), str(why)) for n in _ONLY for key, why in held.get(n, {}).items()]
    return KeyMap.from_pieces(pieces, *rules)


def _replacement(key: str, to: Any) -> Any:
    return tuple(to) if isinstance(to, list) and len(to) == 3 and isinstance(to[1], int) else to


def _pieces(entries: list[Any]) -> tuple[list[Piece], list[Rule]]:
    pieces: list[Piece] = []
    rules: list[Rule] = []
    for number, entry in enumerate(entries):
        try:
            if "stop" in entry:
                pieces.append(_piece(entry))
            else:
                native = entry["native"].replace("\\", "\\\\")
                turned, reshaped = bool(entry.get("transpose")), bool(entry.get("reshape"))
                rules.append(rename(re.escape(entry["reference"]), native, transpose=turned, reshape=reshaped))
        except KeyMapError as error:
            raise KeyMapError(f"piece {number} of the map: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"piece {number} of the map is {str(entry)[:120]}"
            raise KeyMapError(f"{text}\n{type(error).__name__}: {error}; valid: reference, native, start, stop, ...") \
                from error  # fmt: skip
    return pieces, rules


def _piece(entry: Mapping[str, Any]) -> Piece:
    held = {**_DEFAULTS, **{name: value for name, value in entry.items() if name != "note"}}
    permute, columns = held.pop("permute"), held.pop("columns")
    numbers: dict[str, Any] = {name: int(held.pop(name)) for name in _PLACES}
    stop = int(held.pop("native_stop", numbers["native_start"] + numbers["stop"] - numbers["start"]))
    if min(*numbers.values(), stop) < 0:
        raise KeyMapError(f"negative place in {str(entry)[:120]}")
    view, dims = held.pop("view"), tuple(int(n) for n in held.pop("dims"))
    if view is not None and sorted(dims) != list(range(len(view))):
        raise KeyMapError(f"dims {list(dims)} are no order of the dims of view {view}")
    count = stop - numbers["native_start"]
    order = None if permute is None else order_from(permute, count)
    for name in ("reference", "native"):
        if not isinstance(held[name], str):
            raise KeyMapError(f"{name} is {held[name]!r}, not a key")
    across = None if columns is None else order_from(columns, _length(columns))
    seen = None if view is None else tuple(int(n) for n in view)
    return Piece(permute=order, columns=across, view=seen, dims=dims, native_stop=stop, **numbers, **held)


def _length(words: Mapping[str, Any]) -> int:
    """Return how many columns an order in words is of."""
    if "view" in words:
        return math.prod(int(n) for n in words["view"])
    return int(words["blocks"]) * len(words["order"]) if "blocks" in words else len(words["rows"])


def _rule(entry: Any) -> Rule:
    kind = next((name for name in _RULES if isinstance(entry, dict) and name in entry), None)
    if kind is None or not isinstance(entry[kind], list) or len(entry[kind]) != 2:
        raise KeyMapError(f"{str(entry)[:120]} is no rule\nvalid: rename, split or fuse with [from, to]")
    one, other = entry[kind]
    options = {name: value for name, value in entry.items() if name != kind}
    try:
        if options.get("sizes"):
            options["sizes"] = tuple(int(n) for n in options["sizes"])
        if kind == "rename":
            permute = options.pop("permute", None)
            return rename(one, other, permute=None if permute is None else _permute(permute), **options)
        return split(one, tuple(other), **options) if kind == "split" else fuse(tuple(one), other, **options)
    except (TypeError, ValueError) as error:
        raise KeyMapError(f"{str(entry)[:120]} is no rule: {error}") from error


def _permute(words: Any) -> Permute:
    """Return the order a rule's words describe, for as many rows as a tensor has."""
    times = int(words.get("repeat", 1)) if isinstance(words, dict) else 0
    if times < 1:
        raise ValueError(f"permute is {words!r}")
    return lambda rows: order_from(words, times * rows)
