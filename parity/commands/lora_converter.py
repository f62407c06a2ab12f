"""`parity lora converter`: a stand-alone script that converts LoRA files for one matched pair of models."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.commands.weights.key_map import mapped
from parity.errors import RecordError, UsageError
from parity.io import standalone_converter
from parity.io.keymaps import read_key_map
from parity.io.lora_files import open_base
from parity.io.matchreports import read_match_report
from parity.io.outputs import write_out
from parity.lora.base import Base
from parity.lora.formats.standalone import SPELLINGS, source, table
from parity.weights.mapfile import key_map_from
from parity.weights.piece import Piece

EPILOG = examples(
    "parity lora converter report.json -o convert.py",
    "parity lora converter pair_map.json --to kohya -o convert.py",
    "python convert.py their_lora.safetensors my_lora.safetensors",
)
Sizes = dict[str, torch.Size]


def converter(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="What `parity weights match` or `parity weights map` wrote.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="CONVERT.py", help="The script to write.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help=f"What it writes: {', '.join(SPELLINGS)}.")
    ] = next(iter(SPELLINGS)),
    base: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The model the LoRA is for, where a map has patterns.")
    ] = None,
    json_out: JsonOption = False,
) -> None:
    """Write a converter for one pair of models that needs torch and safetensors alone.

    It does what `parity lora convert --map` does: fused and split layers, permuted and transposed ones.
    """
    with reported(json_out):
        pieces, sizes = _found(report, None if base is None else dict(Base.from_keys(open_base(base)).shapes))
        held = table(pieces, to.lower(), sizes)
        write_out(out, source(inspect.getsource(standalone_converter), held))
        modules = len(held["sizes"])
        data = {"converter": str(out), "format": to.lower(), "modules": modules, "pieces": len(held["pieces"])}
        words = f"{out}: converts LoRA on {modules} modules, {len(held['pieces'])} pieces, to {to.lower()}"
        emit(data, f"{words}\nrun it: python {out} IN.safetensors OUT.safetensors", json_out)


def _found(report: Path, sizes: Sizes | None) -> tuple[list[Piece], Sizes | None]:
    """Return the pieces of a report or of a key map, with the shapes of the reference where they are known."""
    held = _report(report)
    if held is not None:
        if not held.get("complete"):
            raise UsageError(f"{report} is partial: go on with parity weights match ... -o {report} --resume")
        key_map = key_map_from(mapped(held, 0))
        sizes = {key: torch.Size(shape) for key, shape in held["shapes"]["reference"].items()}
    else:
        key_map = read_key_map(report)
    if sizes is not None:
        return [piece for pieces in key_map.draft(sizes).pieces.values() for piece in pieces], sizes
    if any(not rule.kind.endswith("_only") for rule in key_map.rules):
        raise UsageError(f"{report} has patterns, which are worked out for a model\nname it with --base")
    return list(key_map.pieces), None


def _report(path: Path) -> dict[str, Any] | None:
    """Return a report of matching; None for another JSON file."""
    try:
        return read_match_report(path)
    except RecordError as error:
        if "is no report" not in str(error):
            raise UsageError(str(error)) from error
    return None


__all__ = ["EPILOG", "converter"]
