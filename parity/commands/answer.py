"""`parity impact`, `nearest`, `values` and `repair`, hidden: what one environment asks the other one's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from parity.answers import ANSWERS
from parity.commands.frame import PairsOption, emit, reported, warned
from parity.inventory import find_project


def commands() -> dict[str, Callable[..., None]]:
    """Return a command for each kind of question."""
    return {name: _command(name) for name in ANSWERS}


def _command(name: str) -> Callable[..., None]:
    def answer(
        pair: Annotated[str, typer.Argument(help="The pair's name.")],
        recording: Annotated[
            list[Path], typer.Option(metavar="DIR", help="The side's recording, then what it was made against.")
        ],
        request: Annotated[Path, typer.Option(metavar="DIR", help="What is asked.")],
        folders: PairsOption = None,
    ) -> None:
        with reported(json_out=True):
            chosen = find_project(Path.cwd(), folders or ()).pair(pair, warned)
            emit(ANSWERS[name](chosen, recording, request), "", json_out=True)

    answer.__doc__ = (ANSWERS[name].__doc__ or "").partition("\n")[0]
    return answer


__all__ = ["commands"]
