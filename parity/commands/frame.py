"""What all commands share: options, examples in help, errors turned into words and an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.errors import CheckpointError, ParityError, RecordError, SourceMissing, UsageError, WrongSource
from parity.inventory import find_project
from parity.io.records import as_json

NOT_HERE = (UsageError, SourceMissing, WrongSource, RecordError, CheckpointError)
"""What the caller or the machine has to change: exit code 2."""



def pair_files(incomplete: str) -> list[str]:
    """Return names of pair files that begin so, for shell completion: nothing is imported, nothing is raised."""
    try:
        folders = find_project(Path.cwd()).folders
    except ParityError:
        return []
    names = {file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.py")}
    return sorted(name for name in names if name.startswith(incomplete) and not name.startswith("_"))


PairArgument = Annotated[
    str, typer.Argument(help="The pair's name, as `parity pairs` lists it.", autocompletion=pair_files)
]
PairsOption = Annotated[
    list[Path] | None,
    typer.Option("--pairs", metavar="DIR", help="A folder of pair files, repeatable. Default: as pytest has it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DtypeOption = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. Default: the pair's.")]
SizeOption = Annotated[str | None, typer.Option(help="A size the pair knows. Default: its first.")]
LoraOption = Annotated[str, typer.Option(help="LoRA states: both, off or on.")]
DrawsOption = Annotated[int | None, typer.Option(min=1, help="Inputs pooled per case. Default: the pair's.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the first draw.")]
TwinsOption = Annotated[int, typer.Option(min=1, help="Lattice twins a draw.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:1. Default: the GPU if there is one.")
]  # fmt: skip


def examples(*commands: str) -> str:
    """Return the examples a command's help ends with."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


def emit(data: dict[str, Any], text: str, json_out: bool) -> None:
    """Print JSON or words."""
    typer.echo(as_json(data) if json_out else text)


def warned(text: str) -> None:
    """Tell on stderr what hurts nothing that was asked for."""
    typer.echo(f"parity: warning: {text}", err=True)


@contextmanager
def reported(json_out: bool) -> Iterator[None]:
    """Turn this package's errors into words on stderr (JSON on stdout where asked for) and an exit code."""
    try:
        yield
    except ParityError as error:
        code = 2 if isinstance(error, NOT_HERE) else 1
        if json_out:
            held = {"error": type(error).__name__, "message": str(error), "exit_code": code}
            typer.echo(json.dumps({**held, **getattr(error, "details", {})}))
        typer.echo(f"parity: {error}", err=True)
        raise typer.Exit(code) from error
