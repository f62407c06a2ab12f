"""`parity run` and `parity compare`: judge a pair, or two recordings of one, without pytest."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.case import ParityCase, cases_of
from parity.choices import device_named, dtype_named, lora_states, size_named
from parity.commands.frame import (
    NOT_HERE,
    DeviceOption,
    DrawsOption,
    DtypeOption,
    JsonOption,
    LoraOption,
    PairArgument,
    PairsOption,
    SeedOption,
    SizeOption,
    emit,
    examples,
    reported,
    warned,
)  # fmt: skip
from parity.engine import Engine, Settings
from parity.errors import ParityError, RecordError
from parity.inventory import find_project
from parity.pair import ModelPair
from parity.propagation import Interpreter, ask
from parity.references import ReferenceSources, recorded_build, recordings, states_of
from parity.report.html import check_extra
from parity.report.record import unjudged_record
from parity.report.terminal import render_run
from parity.report.wording import failure_text, fitted
from parity.run import Options
from parity.runs import RunBook
from parity.selection import select

WordsOption = Annotated[
    str | None, typer.Option("-k", metavar="EXPR", help="Cases whose id has these words (and, or, not).")
]
ReportOption = Annotated[Path, typer.Option(metavar="DIR", help="Where the record is written.")]
HtmlOption = Annotated[
    bool, typer.Option("--html", help="Write the run as a page too: parity.html beside the record (extra: report).")
]
RUN_EPILOG = examples(
    "parity run my_pair",
    "parity run my_pair --lora off --dtype float32",
    'parity run my_pair -k "block1 and not ffn" --json',
    "parity run my_pair --html",
)
COMPARE_EPILOG = examples(
    "parity compare recordings/reference recordings/native",
    "parity compare recordings/reference recordings/native --reference-python envs/original/bin/python",
)


def run(
    pair: PairArgument,
    folders: PairsOption = None,
    dtype: DtypeOption = None,
    size: SizeOption = None,
    lora: LoraOption = "both",
    draws: DrawsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    expression: WordsOption = None,
    report: ReportOption = Path("reports"),
    html: HtmlOption = False,
    json_out: JsonOption = False,
) -> None:
    """Run one pair and judge every tap; write the record."""
    with reported(json_out):
        chosen = find_project(Path.cwd(), folders or ()).pair(pair, warned)
        options = Options(seed=seed, draws=draws)
        settings = Settings(dtype_named(dtype), size_named(chosen, size), device_named(device or "auto"), options)
        states = lora_states(chosen, lora)
        cases = [case for case in cases_of(chosen, settings.build(chosen)) if case.lora in states]
        given = _repeated(folders, dtype=dtype, size=size, draws=draws, seed=seed or None, device=device)
        whole = len(list(cases_of(chosen, settings.build(chosen))))
        out = _Out(report, html, json_out)
        code = _run(chosen, settings, select(cases, expression), whole, f"parity run {pair}{given}", out)
    raise typer.Exit(code)


def compare(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="The reference's recording.")],
    native: Annotated[Path, typer.Argument(metavar="NATIVE", help="The native's, made against it.")],
    folders: PairsOption = None,
    reference_python: Annotated[
        str | None,
        typer.Option(metavar="PYTHON", help="Interpreter the reference lives in, for impacts and nearest variants."),
    ] = None,
    native_python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Interpreter the native lives in, to try repairs.")
    ] = None,
    expression: WordsOption = None,
    report: ReportOption = Path("reports"),
    html: HtmlOption = False,
    json_out: JsonOption = False,
) -> None:
    """Judge two recordings of one pair against each other; no model is loaded."""
    with reported(json_out):
        found = recordings([reference])
        name = next(iter(found))
        chosen = find_project(Path.cwd(), folders or ()).pair(name, warned)
        (build, options), recorded = recorded_build(reference), recordings([native])
        if name not in recorded:
            raise RecordError(f"{native} is a recording of {next(iter(recorded))!r}, {reference} one of {name!r}")
        asks = [
            partial(ask, Interpreter(python, tuple(folders or ()))) if python else None
            for python in (reference_python, native_python)
        ]
        sources = ReferenceSources(folders=found, natives=recorded, ask_reference=asks[0], ask_native=asks[1])
        settings = Settings(build.dtype, build.size, build.device, options, sources)
        wanted = states_of(reference)
        cases = [c for c in cases_of(chosen, settings.build(chosen)) if (c.lora, c.variant) in wanted]
        words = f"parity compare {shlex.quote(str(reference))} {shlex.quote(str(native))}"
        words += _repeated(folders, **{"reference-python": reference_python, "native-python": native_python})
        code = _run(chosen, settings, select(cases, expression), len(cases), words, _Out(report, html, json_out))
    raise typer.Exit(code)


@dataclass(frozen=True)
class _Out:
    """Where a run goes besides the terminal.

    Attributes:
        folder: of the record.
        html: as a page too.
        json: the record is printed, and nothing else.
    """

    folder: Path
    html: bool
    json: bool


def _run(
    pair: ModelPair, settings: Settings, cases: list[ParityCase], whole: int, words: str, out: _Out
) -> int:
    """Judge cases, write and show the record; return the exit code."""
    if out.html:
        check_extra()  # before hours of computing, not behind them
    book, engine = RunBook(out.folder), Engine({pair.name: pair}, settings)
    errors = judge_cases(engine, cases, book, len(cases) < whole, words)
    emit(book.record(), _rendered(book, words), out.json)
    if out.html:
        page = book.shown(book.write_page())
        typer.echo(f"report: {page}", err=out.json)
    _say(errors, book)
    return _exit_code(book, errors)


def judge_cases(
    engine: Engine, cases: list[ParityCase], book: RunBook, selected: bool, words: str
) -> dict[str, ParityError]:
    """Look every case up and write the record; return the errors of the states that could not be run."""
    errors: dict[str, ParityError] = {}
    with book.kept(selected):
        for order, case in enumerate(cases):
            try:
                book.begin(case.pair, case.state, selected)
                book.add_case({**engine.case_record(case), "rerun": _rerun(words, case.id)})
                book.add_state(engine.state_record(case))
            except NOT_HERE:
                raise
            except ParityError as error:
                errors[case.state] = error
                book.add_case({**_unjudged(case, error, order), "rerun": _rerun(words, case.id)})
    return errors


def _rerun(words: str, case_id: str) -> str:
    return f'{words} -k "{case_id}"'


def _unjudged(case: ParityCase, error: ParityError, order: int) -> dict[str, Any]:
    return unjudged_record(
        case_id=case.id, pair=case.pair, state=case.state, tap=case.tap, outcome="error", text=str(error), order=order
    )  # fmt: skip


def _rendered(book: RunBook, words: str) -> str:
    record, width = book.record(), min(shutil.get_terminal_size().columns, 120)
    parts = [render_run(record, width=width, color=_colored()).rstrip()] if book.cases else []
    for case in record["cases"]:
        if case["outcome"] in ("failed", "warned"):
            parts.append(fitted(failure_text(case, _rerun(words, case["id"])), width))
    return "\n\n".join([*parts, "\n".join(f"record: {line}" for line in book.told())])


def _say(errors: Mapping[str, ParityError], book: RunBook) -> None:
    for state, error in errors.items():
        typer.echo(f"parity: {state}: {error}", err=True)
    if not book.judged:
        typer.echo("parity: no case was judged: this run proves nothing", err=True)


def _repeated(folders: list[Path] | None, **options: object) -> str:
    """Return the options that name what was run, to run it again."""
    given: list[tuple[str, object]] = [("pairs", folder) for folder in folders or ()]
    given += [(name, value) for name, value in options.items() if value is not None]
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given)


def _exit_code(book: RunBook, errors: Mapping[str, ParityError]) -> int:
    failed = any(case["outcome"] in ("failed", "error") for case in book.cases.values())
    return int(failed or bool(errors) or not book.judged)


def _colored() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
