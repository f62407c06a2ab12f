"""`parity weights match`: which tensor is which, by value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.commands.weights.gathering import Gathering, known_of
from parity.commands.weights.lines import in_width
from parity.commands.weights.options import (
    NameOption,
    NativeArgument,
    ReferenceArgument,
    RevisionOption,
    SubfolderOption,
    named,
    opened,
)
from parity.commands.weights.progress import BYTES, Progress
from parity.errors import UsageError
from parity.io.checkpoints import Checkpoint
from parity.weights.matching.matcher import Options
from parity.weights.names import unnumbered
from parity.weights.packed import packed_words

EPILOG = examples(
    "parity weights match original.safetensors port/ -o report.json",
    "parity weights match original.safetensors port/ -o report.json --resume --memory 4GB",
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SHOWN = 40
_ORDER = 60
"""Characters of an order that is printed."""


def match(
    reference: ReferenceArgument,
    native: NativeArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="REPORT.json", help="Write the report, whole or partial.")
    ] = None,
    max_weights: Annotated[
        int | None, typer.Option(min=1, help="Only the first N tensors of each side, for a quick look.")
    ] = None,
    sample_size: Annotated[
        int, typer.Option(min=4, help="Rows or columns of a tensor that are looked up one by one.")
    ] = 24,
    memory: Annotated[str, typer.Option(help="What buffers may take: 500MB, 2GB.")] = "2GB",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the report of an interrupted run.")] = False,
    name: NameOption = None,
    revision: RevisionOption = None,
    subfolder: SubfolderOption = None,
    json_out: JsonOption = False,
) -> None:
    """Find which tensor is which by value, whatever the names: renamed, fused, split, transposed, permuted, cast.

    Says "ambiguous" for constants and "unrelated" where nothing fits. Ctrl-C, or a killed process, leaves a partial
    report; --resume goes on.
    Exits 0 where every reference tensor was found, 1 where one is unrelated or the run was interrupted.
    """
    with reported(json_out):
        one, other = opened([reference, native], revision, subfolder)
        names = named(name, [reference, native])
        options = Options(sample_size, _bytes(memory), max_weights)
        known = known_of(out, one, other) if resume else {}
        progress = Progress(_totals(one, other), json_out)
        held = Gathering((one, other), _head(one, other, names), options, progress, out).run(known)
        emit(held, render(held), json_out)
        if not held["complete"]:
            how = f"go on with the same command and --resume: {out}" if out else "with -o REPORT.json it could go on"
            typer.echo(f"parity: interrupted; {how}", err=True)
    unrelated = any(entry["relation"] == "unrelated" for entry in held["matches"])
    raise typer.Exit(int(unrelated or not held["complete"]))


def _totals(one: Checkpoint, other: Checkpoint) -> dict[str, tuple[int, str]]:
    size = 2 * sum(stored.nbytes for stored in other.stored.values())
    both = len(one.stored) + len(other.stored)
    return {"looking": (both, "tensors"), "finding": (len(other.stored), "tensors"), "measuring": (size, BYTES)}


def _head(one: Checkpoint, other: Checkpoint, names: list[str]) -> dict[str, Any]:
    shapes = {side: {key: list(held.shape) for key, held in c.stored.items()}
              for side, c in (("reference", one), ("native", other))}  # fmt: skip
    identities = {"reference": one.identity(), "native": other.identity()}
    notes = [f"{side}: {text}" for side, held in shapes.items() for text in packed_words(held)]
    return {"reference": names[0], "native": names[1], "identities": identities, "shapes": shapes, "notes": notes}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1 << 24:
        raise UsageError(f"--memory {text!r} is no size of at least 16MB\nvalid: 500MB, 2GB")
    return size


def render(held: dict[str, Any]) -> str:
    """Return the report in words."""
    summary = held["summary"]
    bands = ", ".join(f"{summary[f'{band}_similarity_count']} {band}" for band in ("high", "medium", "low"))
    relations = ", ".join(f"{count} {name}" for name, count in summary["relations"].items())
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in held["matches"]:
        names = (entry["reference"], str(entry["native"]), entry["relation"])
        alike.setdefault(tuple(unnumbered(name) for name in names), []).append(entry)
    groups = list(alike.values())
    lines = [
        f"{held['reference']} -> {held['native']}" + ("" if held["complete"] else "  (partial)"),
        f"mean cosine {summary['mean_cosine_similarity']:.6f}; similarity: {bands}", f"relations: {relations}",
        *(f"note: {note}" for note in held["notes"]),
        *(f"  {block}: mean cosine {b['mean_cosine']:.6f} over {b['tensors']}"
          for block, b in list(held["blocks"].items())[:8]),
        *(_line(group) for group in groups[:_SHOWN]),
    ]  # fmt: skip
    more = len(groups) - _SHOWN
    lines += [f"  ... {more} more; -o REPORT.json writes all"] if more > 0 else []
    if held["unmatched_native"]:
        shown = ", ".join(held["unmatched_native"][:6])
        lines.append(f"native tensors that hold no reference's values: {len(held['unmatched_native'])}: {shown}")
    return in_width([*lines, f"{summary['scenario']}: {summary['meaning']}"])


def _line(group: list[dict[str, Any]]) -> str:
    """Word the entries of one kind, all blocks together, by the one that agrees least."""
    entry = min(group, key=lambda held: -1.0 if held["cosine"] is None else held["cosine"])
    alike = ", the least alike" if len({held["cosine"] for held in group}) > 1 else ""
    times = f" (x {len(group)}{alike})" if len(group) > 1 else ""
    if entry["native"] is None:
        return f"  {entry['reference']}{times}  {entry['relation']}: {entry['why']}"
    span = ""
    if any(word in entry["relation"] for word in ("fuse", "split", "permute")):
        place = entry["slice"]["native"]
        inside = [place["start"], "...", f"{place['count']} x {place['size']}"] if isinstance(place, dict) else place
        span = f"{entry['slice']['reference']} -> {inside}"
    if entry["permutation"] and len(order := str(entry["permutation"])) < _ORDER:
        span += f" {order}"
    numbers = f"cosine {entry['cosine']:.6f}, rel_l2 {entry['rel_l2']:.2g}"
    doubt = "" if entry["confidence"] == "high" else f", {entry['confidence']}: {entry['why']}"
    return f"  {entry['reference']} -> {entry['native']}{times}  {entry['relation']} {span}  {numbers}{doubt}"
