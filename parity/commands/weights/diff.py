"""`parity weights diff`: how the names and shapes of two checkpoints differ."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.commands.weights.inspect import key_list
from parity.commands.weights.lines import in_width, listed
from parity.commands.weights.options import (
    ExportOption,
    NameOption,
    NativeArgument,
    ReferenceArgument,
    RevisionOption,
    SubfolderOption,
    named,
    opened,
)
from parity.io.checkpoints import Checkpoint
from parity.io.keymaps import write_key_map
from parity.io.outputs import write_out
from parity.weights.anatomy import anatomy_of
from parity.weights.compatibility import compatibility
from parity.weights.mapfile import encoded
from parity.weights.names import unnumbered
from parity.weights.proposal import Proposal, proposed

EPILOG = examples(
    "parity weights diff original.safetensors port/",
    'parity weights diff a.pt b.safetensors --name "original" --name "port" -o map.json',
)
_SHOWN = 12


def diff(
    reference: ReferenceArgument,
    native: NativeArgument,
    name: NameOption = None,
    revision: RevisionOption = None,
    subfolder: SubfolderOption = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="MAP.json", help="Write the proposed key map.")
    ] = None,
    export: ExportOption = None,
    json_out: JsonOption = False,
) -> None:
    """Compare keys and shapes, propose which tensor is which, and say what it means for loading and for a LoRA.

    Reads headers only. Exits 0 where keys and shapes are the same, 1 where they differ.
    """
    with reported(json_out):
        models = [reference, native]
        one, other = opened(models, revision, subfolder)
        proposals = proposed(one.shapes, other.shapes)
        held = compare(one, other, named(name, models), proposals)
        if out is not None:
            write_key_map(out, proposed_map(one, other, proposals))
        if export is not None:
            write_out(export, f"# {models[0]}\n{key_list(one)}\n# {models[1]}\n{key_list(other)}")
        emit(held, render(held), json_out)
    raise typer.Exit(int(not held["same"]))


def compare(one: Checkpoint, other: Checkpoint, names: list[str], proposals: list[Proposal]) -> dict[str, Any]:
    """Return the comparison as JSON has it."""
    ours, theirs = one.shapes, other.shapes
    common = [key for key in ours if key in theirs]
    different = [key for key in common if ours[key] != theirs[key]]
    anatomies = anatomy_of(ours), anatomy_of(theirs)
    missing, unexpected = [k for k in ours if k not in theirs], [k for k in theirs if k not in ours]
    return {
        "reference": names[0], "native": names[1], "counts": {"reference": len(ours), "native": len(theirs)},
        "same": not (missing or unexpected or different), "common_keys": len(common), "missing_keys": missing,
        "unexpected_keys": unexpected, "same_shape": len(common) - len(different),
        "different_shape": {k: {"reference": list(ours[k]), "native": list(theirs[k])} for k in different},
        "naming": {side: {"separator": a.separator, "case": a.case}
                   for side, a in zip(("reference", "native"), anatomies, strict=True)},
        "compatibility": asdict(compatibility(ours, theirs, anatomies, proposals)),
        "mapping": [_entry(proposal) for proposal in proposals],
    }  # fmt: skip


def _entry(proposal: Proposal) -> dict[str, Any]:
    piece = proposal.piece
    return {
        "reference": piece.reference, "native": piece.native, "relation": proposal.relation,
        "slice": {"reference": [piece.start, piece.stop], "native": [piece.native_start, piece.native_stop], "dim": 0},
        "confidence": proposal.confidence, "why": proposal.why,
    }  # fmt: skip


def proposed_map(one: Checkpoint, other: Checkpoint, proposals: list[Proposal]) -> dict[str, Any]:
    """Return the proposals as a key map; what has none is said to be of one side."""
    pieces = [proposal.piece for proposal in proposals]
    ours, theirs = {piece.reference for piece in pieces}, {piece.native for piece in pieces}
    why = "no counterpart was found by name and shape"
    only = ({k: why for k in one.stored if k not in ours}, {k: why for k in other.stored if k not in theirs})
    return encoded(pieces, only, {p.piece.native: f"{p.confidence}: {p.why}" for p in proposals})


def render(held: dict[str, Any]) -> str:
    """Return the comparison in words."""
    verdict, counts = held["compatibility"], held["counts"]
    lines = [
        f"reference  {held['reference']}  {counts['reference']} tensors",
        f"native     {held['native']}  {counts['native']} tensors",
        f"common keys {held['common_keys']}, overlap {verdict['overlap']:.0%}, of the same shape {held['same_shape']}",
        f"naming     {_naming(held['naming']['reference'])} | {_naming(held['naming']['native'])}",
        *(f"shape      {key}: {sides['reference']} | {sides['native']}"
          for key, sides in list(held["different_shape"].items())[:_SHOWN]),
        *listed("missing_keys", held["missing_keys"], _SHOWN),
        *listed("unexpected_keys", held["unexpected_keys"], _SHOWN),
        *_mapping(held["mapping"]), *(f"+ {flag}" for flag in verdict["green_flags"]),
        *(f"- {flag}" for flag in verdict["red_flags"]), f"{verdict['band']}: {verdict['meaning']}",
        f"LoRA: {verdict['lora']}",
    ]  # fmt: skip
    return in_width(lines)


def _naming(held: dict[str, str]) -> str:
    return f"separator {held['separator']!r}, {held['case']}"


def _mapping(entries: list[dict[str, Any]]) -> list[str]:
    renamed = [entry for entry in entries if entry["reference"] != entry["native"]]
    levels = {level: sum(entry["confidence"] == level for entry in entries) for level in ("high", "medium", "low")}
    lines = ["proposed: " + ", ".join(f"{count} {level}" for level, count in levels.items())]
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in renamed:
        alike.setdefault((unnumbered(entry["reference"]), unnumbered(entry["native"])), []).append(entry)
    first = list(alike.values())[: 2 * _SHOWN]
    for entries_of_one in first:
        entry, times = entries_of_one[0], f" (x {len(entries_of_one)})" if len(entries_of_one) > 1 else ""
        where = f"{entry['reference']} -> {entry['native']}{times}"
        lines.append(f"  {entry['confidence']:<6} {where}  {entry['relation']}: {entry['why']}")
    more = len(alike) - len(first)
    return [*lines, f"  ... {more} more; -o MAP.json writes all"] if more > 0 else lines
