"""`parity report`: a run's record as one HTML file."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.errors import UsageError
from parity.io.outputs import write_alone
from parity.io.records import read_record
from parity.report.html import render_html

EPILOG = examples(
    "parity report reports/parity.json",
    "parity report reports/parity.json --open",
    "parity report reports/parity.json --compare reports/whole.json -o reports/since.html",
)


def report(
    record: Annotated[Path, typer.Argument(metavar="RUN", help="The record of a run: reports/parity.json.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The HTML file. Default: beside the record.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="EARLIER", help="The record of an earlier run, to say what changed.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    json_out: JsonOption = False,
) -> None:
    """Write a run as one HTML file: what differs, where it starts, every number behind it.

    The file needs nothing else and asks nothing of any network. Needs the extra `report`.
    """
    with reported(json_out):
        target = out if out is not None else record.with_suffix(".html")
        _check_apart(target, record, compare)
        path = write_alone(target, rendered(record, compare))
        size = path.stat().st_size
        emit({"path": str(path), "bytes": size}, f"report: {target} ({size / 1e6:.1f} MB)", json_out)
        if open_it and not webbrowser.open_new_tab(path.as_uri()):
            typer.echo(f"parity: no browser could be started; open {path}", err=True)


def rendered(record: Path, compare: Path | None = None) -> str:
    """Return the HTML of a record, compared with an earlier one where that is given.

    Raises:
        RecordError: a file is missing, truncated, edited, foreign or of another schema; names it.
        UsageError: the extra is not installed.
    """
    run, earlier = read_record(record), None if compare is None else read_record(compare)
    return render_html(run, earlier, (str(record), str(compare)))


def _check_apart(target: Path, *records: Path | None) -> None:
    """Refuse to write over a record: it is what cannot be made again."""
    for one in records:
        if one is not None and target.resolve() == one.resolve():
            raise UsageError(f"{target} is the record itself; name another file with -o")
