"""`parity new`: write a pair file from two models."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.errors import ModelFailed, ParityError, UsageError
from parity.inventory import find_project
from parity.io.atomic import write_atomic
from parity.io.config import configured
from parity.scaffold.lines import BLANK
from parity.scaffold.propose import Proposal, Request, agrees, propose
from parity.scaffold.sides import Factory, config_of
from parity.scaffold.write import pair_file

EXAMPLES = "\n".join(
    (
        "\b", "Examples:",
        "  parity new my_port --reference original.model:Original --native port.model:Port",
        "  parity new my_port --reference original.model:tiny --native port.model:tiny --mapping port.model:NAMES",
    )
)  # fmt: skip

Where = Annotated[str, typer.Option(metavar="MODULE:NAME", help="A class or function that gives the model.")]
Config = Annotated[str | None, typer.Option(metavar="JSON", help="Keyword arguments for it, for a tiny model.")]
Call = Annotated[
    str | None,
    typer.Option(metavar="MODULE:NAME", help="A function of (model, inputs) that runs it. Default: proposed."),
]


def new(
    name: Annotated[str, typer.Argument(help="The pair's name: lower case, underscore inside a word.")],
    reference: Where,
    native: Where,
    reference_config: Config = None,
    native_config: Config = None,
    reference_call: Call = None,
    native_call: Call = None,
    mapping: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="An existing dict from key pattern to native key.")
    ] = None,
    converter: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="An existing function from state dict to state dict.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="A function that draws inputs; may take build and seed.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: NAME.py in the pair folder; - prints it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Write a pair file from two models.

    Builds both, proposes a key map from names, shapes and values, runs both and proposes taps where their values agree.
    What nothing decides is left blank and marked TODO(pair).
    """
    with _reported(json_out):
        file = _file(name, output, force)
        sides = (
            Factory(reference, config_of(reference_config, "--reference-config"), reference_call),
            Factory(native, config_of(native_config, "--native-config"), native_call),
        )
        found = propose(Request(name, *sides, mapping=mapping, converter=converter, inputs=inputs))
        text = pair_file(found)
        if str(file) == "-":
            typer.echo(text, nl=False)
            return
        write_atomic(file, text.encode())
        typer.echo(json.dumps(_facts(found, file, text)) if json_out else _words(found, file, text))


def _file(name: str, output: Path | None, force: bool) -> Path:
    """Return the file to write, with the project's own modules importable.

    Raises:
        UsageError: the name is no pair's, no folder is known, or the file is there.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"the pair name {name!r} is not lower case with underscores: my_pair")
    project = find_project(Path.cwd())
    for folder in reversed([Path.cwd(), project.root, *configured(project.root, "pythonpath")]):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    if output is None and not project.folders:
        text = "no pair folder is configured\nset `parity_pairs` in the pytest configuration, or pass -o FILE"
        raise UsageError(text)
    file = output or project.folders[0] / f"{name}.py"
    if file.exists() and not force and str(file) != "-":
        raise UsageError(f"{_shown(file)} is there already\npass --force to replace it, or -o FILE to write elsewhere")
    return file


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _facts(found: Proposal, file: Path, text: str) -> dict[str, Any]:
    return {
        "file": _shown(file),
        "rules": len(found.keys.lines()) if found.keys.existing is None else 0,
        "existing_map": found.map_source,
        "reference_blank": [key for group in found.keys.reference_blank for key in group.keys],
        "native_blank": [key for group in found.keys.native_blank for key in group.keys],
        "map_problems": list(found.keys.problems),
        "taps": {name: apart if agrees(apart) else f"{apart:.1e}" for name, apart in found.distances.items()},
        "output_distance": found.output_distance,
        "not_run": found.why_not_run,
        "blanks": text.count(BLANK) - 1,
    }


def _words(found: Proposal, file: Path, text: str) -> str:
    blanks = text.count(BLANK) - 1
    keys = found.keys
    rules = f"{len(keys.lines())} rules" if keys.existing is None else f"{found.map_source}"
    left = len(keys.reference_blank) + len(keys.native_blank) + len(keys.problems)
    good = sum(agrees(apart) for apart in found.distances.values())
    ran = f"{good} of {len(found.distances)} agree" if found.why_not_run is None else f"not run: {found.why_not_run}"
    folder = "" if file.parent in find_project(Path.cwd()).folders else f" --pairs {_shown(file.parent)}"
    return "\n".join(
        [
            f"{_shown(file)}",
            f"  key map  {rules}, {left} open",
            f"  taps     {len(found.taps)} kinds, {ran}",
            f"  blanks   {blanks}" + (f": look for {BLANK}" if blanks else ""),
            f"next: parity run {found.request.name}{folder}",
        ]
    )


@contextmanager
def _reported(json_out: bool) -> Iterator[None]:
    """Turn this package's errors into words on stderr and an exit code: 1 where a model fails, else 2."""
    try:
        yield
    except ParityError as error:
        code = 1 if isinstance(error, ModelFailed) else 2
        if json_out:
            typer.echo(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": code}))
        typer.echo(f"parity: {error}", err=True)
        raise typer.Exit(code) from error
