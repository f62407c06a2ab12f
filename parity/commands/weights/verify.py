"""`parity weights verify`: whether a conversion lost, swapped or changed anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
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
from parity.errors import UsageError
from parity.io.keymaps import read_key_map
from parity.weights.keymap import KeyMap, rename
from parity.weights.verification import DIFFERENT, EXACT, FINER, ROUNDED, Verification, verify

EPILOG = examples(
    "parity weights verify original.safetensors port/ --map pair_map.json",
    "parity weights verify original.safetensors port/ --map pair_map.json --allow-cast bfloat16 --json",
)
_SHOWN = 30
_CASTS = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2")


def verify_command(
    reference: ReferenceArgument,
    native: NativeArgument,
    key_map: Annotated[
        Path | None, typer.Option("--map", metavar="MAP", help="The key map. Default: the same names on both sides.")
    ] = None,
    allow_cast: Annotated[
        list[str] | None, typer.Option(metavar="DTYPE", help="A dtype the native may be rounded to; repeatable.")
    ] = None,
    name: NameOption = None,
    revision: RevisionOption = None,
    subfolder: SubfolderOption = None,
    json_out: JsonOption = False,
) -> None:
    """Check a converted checkpoint against its source, tensor by tensor, through the key map.

    Every tensor is accounted for: exact, rounded, swapped, missing or unexpected.
    Exits 0 where all is exact (or rounded as allowed), 1 where not.
    """
    with reported(json_out):
        if unknown := [dtype for dtype in allow_cast or () if dtype not in _CASTS]:
            raise UsageError.unknown("dtype", unknown[0], _CASTS)
        mapped = KeyMap((rename("(?s:(.*))", r"\1"),)) if key_map is None else read_key_map(key_map)
        models = [reference, native]
        one, other = opened(models, revision, subfolder)
        found = verify(one, other, mapped, (one.shapes, other.shapes))
        shards = [f"{label}: {text}" for label, c in zip(models, (one, other), strict=True) for text in c.problems]
        held = as_json_record(found, named(name, models), tuple(allow_cast or ()), shards)
        emit(held, render(held), json_out)
    raise typer.Exit(int(held["verdict"] == DIFFERENT))


def as_json_record(
    found: Verification, names: list[str], allowed: tuple[str, ...] = (), shards: list[str] | None = None
) -> dict[str, Any]:
    """Return the verification as JSON has it; `findings` holds what is wrong, most telling first."""
    findings = list(_findings(found, allowed, shards or []))
    rounded = found.count(ROUNDED) or found.count(FINER)
    return {
        "reference": names[0], "native": names[1],
        "verdict": DIFFERENT if findings else ROUNDED if rounded else EXACT,
        "counts": {status: found.count(status) for status in (EXACT, ROUNDED, FINER, DIFFERENT)},
        "missing_keys": list(found.missing_keys), "unexpected_keys": list(found.unexpected_keys),
        "unmapped_keys": list(found.unmapped_keys), "reference_only": dict(found.reference_only),
        "native_only": dict(found.native_only), "findings": findings,
    }  # fmt: skip


def _findings(found: Verification, allowed: tuple[str, ...], shards: list[str]) -> Iterator[dict[str, Any]]:
    yield from ({"kind": "wrong_shard", "key": None, "says": text} for text in shards)
    for block, other in found.blocks.items():
        moved = ", and the other way round" if found.blocks.get(other) == block else ""
        kind = "swapped_block" if other in found.blocks else "duplicated_block"
        yield {"kind": kind, "key": block, "says": f"{block} holds {other}{moved}"}
    for key in found.missing_keys:
        yield {"kind": "missing_key", "key": key, "says": f"the native lacks {key}"}
    for key in found.unexpected_keys:
        yield {"kind": "unexpected_key", "key": key, "says": f"no rule of the map makes {key}"}
    for key in found.unmapped_keys:
        yield {"kind": "unmapped_key", "key": key, "says": f"the map sends the reference's {key} nowhere"}
    for key, why in found.broken.items():
        yield {"kind": "broken_map", "key": key, "says": why}
    for key, (wanted, held) in found.mis_shaped.items():
        says = f"{key} has shape {list(held)}, the map gives {list(wanted)}"
        yield {"kind": "shape", "key": key, "says": says}
    for keys in found.tied:
        yield {"kind": "tied_differ", "key": keys[0], "says": f"copies of one tensor differ: {', '.join(keys)}"}
    yield from _tensor_findings(found, allowed)


def _tensor_findings(found: Verification, allowed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for tensor in sorted(found.tensors, key=lambda tensor: tensor.holds is None):
        difference = tensor.difference
        if difference is None or tensor.status == FINER:
            continue
        lost = difference.rounded_to or difference.stored
        if tensor.status == ROUNDED and (lost in allowed or difference.stored in allowed):
            continue
        kind = "swapped" if tensor.holds else "precision_lost" if tensor.status == ROUNDED else "different"
        says = f"{tensor.native} holds {tensor.holds}" if tensor.holds else f"{tensor.native}: {difference.what}"
        if kind == "precision_lost":
            says += f" ({difference.wanted} values, stored as {difference.stored})"
        yield {
            "kind": kind, "key": tensor.native, "says": says, "holds": tensor.holds,
            "references": list(tensor.references), "rel_l2": difference.rel_l2, "max_abs": difference.max_abs,
            "cosine": difference.cosine,
        }  # fmt: skip


def render(held: dict[str, Any]) -> str:
    """Return the verification in words."""
    counts = ", ".join(f"{count} {status}" for status, count in held["counts"].items() if count)
    lines = [f"{held['reference']} -> {held['native']}: {counts or 'nothing compared'}"]
    for side in ("reference_only", "native_only"):
        lines += [f"  {side} {len(held[side])}: {', '.join(list(held[side])[:4])}"] if held[side] else []
    for finding in held["findings"][:_SHOWN]:
        number = finding.get("rel_l2")
        shown = f"  rel_l2 {number:.2g}, max_abs {finding['max_abs']:.2g}" if isinstance(number, float) else ""
        lines.append(f"  {finding['kind']:<16} {finding['says']}{shown}")
    more = len(held["findings"]) - _SHOWN
    lines += [f"  ... {more} more; --json prints all"] if more > 0 else []
    verdicts = {EXACT: "every tensor is exact", ROUNDED: "exact but for rounding of what is stored",
                DIFFERENT: f"{len(held['findings'])} findings"}  # fmt: skip
    return in_width([*lines, verdicts[held["verdict"]]])
