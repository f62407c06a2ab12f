"""`parity summary`: a run's record as Markdown for a CI service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.io.outputs import write_out
from parity.io.records import RECORD, as_written, read_record
from parity.report.markdown import MOST_BYTES, render_markdown

EPILOG = examples(
    "parity summary",
    "parity summary reports/parity.json -o summary.md",
)


def summary(
    run: Annotated[Path, typer.Argument(metavar="RUN.json", help="A run's record.")] = Path("reports/parity.json"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where it goes. Default: printed.")
    ] = None,
    most: Annotated[int, typer.Option(min=2000, help="The most bytes it may have.")] = MOST_BYTES,
    json_out: JsonOption = False,
) -> None:
    """Word a run as Markdown: failures first, one row a component.

    For $GITHUB_STEP_SUMMARY and buildkite-agent annotate; always below 1 MiB.
    """
    with reported(json_out):
        record = read_record(run)
        with as_written(run, RECORD):
            text = render_markdown(record, most)
        if output is not None:
            write_out(output, text)
        if json_out:
            emit({"markdown": text, "bytes": len(text.encode()), "file": str(output) if output else None}, "", True)
        elif output is None:
            sys.stdout.write(text)
