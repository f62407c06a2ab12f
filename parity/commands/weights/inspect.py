"""`parity weights inspect`: what is in a checkpoint."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.commands.weights.lines import in_width
from parity.commands.weights.options import (
    ExportOption,
    ModelArgument,
    NameOption,
    RevisionOption,
    SubfolderOption,
    named,
    opened,
)
from parity.commands.weights.tree import tree_lines
from parity.io.checkpoints import Checkpoint
from parity.io.outputs import write_out
from parity.weights.anatomy import anatomy_of
from parity.weights.names import printable
from parity.weights.packed import packed_words

EPILOG = examples(
    "parity weights inspect model.safetensors",
    "parity weights inspect org/name --subfolder transformer --json",
    "parity weights inspect checkpoints/dit --name native --export keys.txt",
)


def inspect(
    model: ModelArgument,
    name: NameOption = None,
    revision: RevisionOption = None,
    subfolder: SubfolderOption = None,
    export: ExportOption = None,
    json_out: JsonOption = False,
) -> None:
    """Say what is in a checkpoint: tensors, dtypes, naming, blocks, attention, sizes, norms, modulation, a tree.

    Reads headers only. Exits 1 where a loader would stumble: keys in another shard than the index says.
    """
    with reported(json_out):
        checkpoint = opened([model], revision, subfolder)[0]
        described = describe(checkpoint, named(name, [model])[0])
        if export is not None:
            write_out(export, key_list(checkpoint))
        emit(described, render(described, tree_lines(checkpoint.shapes)), json_out)
    raise typer.Exit(int(bool(described["problems"])))


def describe(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Return what is known of a checkpoint from its headers, as JSON has it."""
    dtypes: dict[str, Counter[str]] = defaultdict(Counter)
    for stored in checkpoint.stored.values():
        numbers = {"tensors": 1, "parameters": math.prod(stored.shape), "bytes": stored.nbytes}
        dtypes[stored.dtype_name].update(numbers)
    total = sum(dtypes.values(), Counter({"tensors": 0, "parameters": 0, "bytes": 0}))
    return {
        "model": name, "files": [file.path.name for file in checkpoint.files], **total,
        "dtypes": {dtype: dict(counts) for dtype, counts in sorted(dtypes.items())},
        "kinds": dict(Counter(_kind(key) for key in checkpoint.stored)), **anatomy_of(checkpoint.shapes).as_dict(),
        "unwrapped": list(checkpoint.unwrapped), "left_out": list(checkpoint.left_out),
        "problems": checkpoint.problems, "notes": packed_words(checkpoint.stored),
        "keys": {key: {"dtype": held.dtype_name, "shape": list(held.shape)} for key, held in checkpoint.stored.items()},
    }  # fmt: skip


def _kind(key: str) -> str:
    last = key.rpartition(".")[2]
    if "norm" in key.lower() and last in ("weight", "bias", "scale", "gamma"):
        return "norm"
    return last if last in ("weight", "bias") else "other"


def key_list(checkpoint: Checkpoint) -> str:
    """Return one line a tensor: key, dtype, shape, apart by tabs."""
    lines = (f"{printable(k)}\t{s.dtype_name}\t{list(s.shape)}" for k, s in checkpoint.stored.items())
    return "\n".join(lines) + "\n"


def render(described: dict[str, Any], tree: list[str]) -> str:
    """Return the description in words, with the tree below."""
    dtypes = ", ".join(f"{name} {held['tensors']}" for name, held in described["dtypes"].items())
    sizes = {name: held for name, held in described["sizes"].items() if held is not None}
    rows = [
        ("files", f"{len(described['files'])}, {described['bytes'] / 1e9:.2f} GB"),
        ("tensors", f"{described['tensors']} ({dtypes}), {described['parameters'] / 1e6:,.1f} M parameters"),
        ("kinds", ", ".join(f"{kind} {count}" for kind, count in described["kinds"].items())),
        ("naming", f"separator {described['naming']['separator']!r}, {described['naming']['case']}"),
        *((f"blocks {held['prefix']}", _stack_words(held)) for held in described["blocks"]),
        *((f"attention {where}", what) for where, what in described["attention"].items()),
        ("sizes", ", ".join(f"{name} {size}" for name, size in sizes.items()) or "names and shapes do not tell"),
        ("norms", ", ".join(f"{count} {kind}" for kind, count in described["norms"].items()) or "none by name"),
        ("modulation", described["modulation"] or "none by name"),
        ("unwrapped", ", ".join(described["unwrapped"])),
        ("left out", f"{len(described['left_out'])} entries that are no dense tensors" * bool(described["left_out"])),
    ]
    wide = max(len(name) for name, held in rows if held)
    words = [f"  {name:<{wide}}  {held}" for name, held in rows if held]
    problems = [f"  note: {text}" for text in described["notes"]]
    problems += [f"  problem: {text}" for text in described["problems"][:20]]
    return in_width([described["model"], *words, *problems, "", *tree])


def _stack_words(held: dict[str, Any]) -> str:
    irregular = f", unlike the first: {held['irregular'][:8]}" if held["irregular"] else ""
    return f"{held['blocks']} of {held['tensors_per_block']} tensors{irregular}"
