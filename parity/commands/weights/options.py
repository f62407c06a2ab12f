"""Options and arguments the commands on checkpoints share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from parity.errors import UsageError
from parity.io.checkpoints import Checkpoint, open_checkpoint

_WHAT = "A file, an index, a folder, or the repo_id of a cached repository."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_WHAT)]
ReferenceArgument = Annotated[str, typer.Argument(metavar="REFERENCE", help=_WHAT)]
NativeArgument = Annotated[str, typer.Argument(metavar="NATIVE", help=_WHAT)]
RevisionOption = Annotated[
    list[str] | None, typer.Option("--revision", help="Of a cached repository; twice for one each.")
]
SubfolderOption = Annotated[
    list[str] | None, typer.Option("--subfolder", help="Below each folder, such as transformer; twice for one each.")
]
NameOption = Annotated[list[str] | None, typer.Option("--name", help="What the output calls it; once a checkpoint.")]
ExportOption = Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write the keys to a text file.")]


def opened(
    models: Sequence[str], revisions: Sequence[str] | None, subfolders: Sequence[str] | None
) -> list[Checkpoint]:
    """Open each checkpoint with the revision and subfolder given for it, or for all.

    Raises:
        UsageError: more options than checkpoints, or nothing of a name.
        CheckpointError: a file is damaged.
    """
    wanted = zip(models, _each("--revision", revisions, models), _each("--subfolder", subfolders, models), strict=True)
    return [open_checkpoint(model, revision, subfolder) for model, revision, subfolder in wanted]


def named(names: Sequence[str] | None, models: Sequence[str]) -> list[str]:
    """Return what to call each checkpoint: as told, else the last part of its path.

    Raises:
        UsageError: more names than checkpoints.
    """
    plain = [Path(model).name or model for model in models]
    if len(set(plain)) < len(plain):
        plain = list(models)
    if len(names or ()) > len(models):
        raise UsageError(f"{len(names or ())} --name for {len(models)} checkpoints")
    return [*(names or ()), *plain[len(names or ()) :]]


def _each(option: str, given: Sequence[str] | None, models: Sequence[str]) -> list[str | None]:
    if not given:
        return [None] * len(models)
    if len(given) == 1:
        return [given[0]] * len(models)
    if len(given) != len(models):
        raise UsageError(f"{len(given)} {option} for {len(models)} checkpoints")
    return list(given)
