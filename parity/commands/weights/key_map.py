"""`parity weights map`: a report of matching becomes a key map for the suite, LoRA conversion and loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.errors import KeyMapError, UsageError
from parity.io.keymaps import write_key_map
from parity.io.matchreports import read_match_report
from parity.weights.mapfile import encoded, key_map_from
from parity.weights.matching.entries import part_from
from parity.weights.matching.pieces import pieces_of
from parity.weights.piece import Piece

EPILOG = examples(
    "parity weights map report.json -o pair_map.json",
    "parity weights map report.json -o pair_map.json --confidence medium",
)
_LEVELS = ("low", "medium", "high")


def key_map(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="What `parity weights match -o` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="MAP.json", help="Where the key map goes.")],
    confidence: Annotated[str, typer.Option(help="The least that is taken over: low, medium or high.")] = "low",
    json_out: JsonOption = False,
) -> None:
    """Make a key map of a report of `parity weights match`, checked to account for every tensor of both sides.

    Tensors without a counterpart are declared, with the reason; look at them before you trust the map.
    """
    with reported(json_out):
        if confidence not in _LEVELS:
            raise UsageError.unknown("confidence", confidence, _LEVELS)
        held = read_match_report(report)
        if not held.get("complete"):
            raise UsageError(f"{report} is partial: go on with parity weights match ... -o {report} --resume")
        made = mapped(held, _LEVELS.index(confidence))
        write_key_map(out, made)
        counts = {name: len(made[name]) for name in ("pieces", "reference_only", "native_only")}
        declared = [f"  {side}: {key}: {why}" for side in ("reference_only", "native_only")
                    for key, why in list(made[side].items())[:10]]  # fmt: skip
        words = ", ".join(f"{count} {name}" for name, count in counts.items())
        emit({"map": str(out), **counts}, "\n".join([f"{out}: {words}", *declared]), json_out)


def mapped(report: dict[str, Any], least: int) -> dict[str, Any]:
    """Return the JSON of the key map, known to be total for the shapes of the report.

    Raises:
        KeyMapError: an entry was edited, or pieces leave part of a tensor out.
    """
    shapes = report["shapes"]
    pieces: list[Piece] = []
    for entry in report["matches"]:
        if entry["native"] is not None and _LEVELS.index(entry["confidence"]) >= least:
            axis, part, reshape = part_from(entry)
            sides = _shape(shapes["reference"], part.key), _shape(shapes["native"], entry["native"])
            pieces += pieces_of(entry["native"], axis, part, sides, reshape)
    ours, theirs = {piece.reference for piece in pieces}, {piece.native for piece in pieces}
    why = {entry["reference"]: entry["why"] for entry in report["matches"] if entry["native"] is None}
    only = (
        {key: why.get(key, "matched with too little confidence") for key in shapes["reference"] if key not in ours},
        {key: "holds no reference tensor's values" for key in shapes["native"] if key not in theirs},
    )
    made = encoded(pieces, only)
    sizes = [{key: torch.Size(shape) for key, shape in shapes[side].items()} for side in ("reference", "native")]
    key_map_from(made).check(*sizes)
    return made


def _shape(shapes: dict[str, list[int]], key: str) -> list[int]:
    if key not in shapes:
        raise KeyMapError(f"the report matches {key!r} and has no shape of it: it was edited\nrun again")
    return shapes[key]
