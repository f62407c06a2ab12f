"""The command line. Commands exit 0 (parity, or nothing wrong), 1 (differences or errors), 2 (usage or environment)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import parity
from parity.case import ParityCase, cases_of
from parity.choices import device_named, dtype_named, lora_states, size_named
from parity.commands import debug_lora, record, weights
from parity.discover import choose
from parity.doctor import as_records, examine, render_checks, worst
from parity.engine import Engine, Settings
from parity.errors import ParityError, RecordError, SourceMissing, UsageError, WrongSource
from parity.inventory import describe_pair, find_project, render_pairs
from parity.io.records import as_json
from parity.report.terminal import render_run
from parity.report.wording import failure_text
from parity.run import Options
from parity.runs import RunBook
from parity.selection import select

app = typer.Typer(
    name="parity", add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip


def _examples(*commands: str) -> str:
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


_RUN_EXAMPLES = (
    "parity run my_pair",
    "parity run my_pair --lora off --dtype float32",
    'parity run my_pair -k "block1 and not ffn" --json',
)

_NOT_HERE = (UsageError, SourceMissing, WrongSource, RecordError)
"""What the caller or the machine has to change: exit code 2."""

PairsOption = Annotated[
    list[Path] | None,
    typer.Option("--pairs", metavar="DIR", help="A folder of pair files, repeatable. Default: as pytest has it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def main() -> None:
    """Run the command line; the entry point of the distribution."""
    app()


@app.callback(invoke_without_command=True, epilog=_examples("parity pairs", "parity run my_pair", "parity doctor"))
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Judge whether a ported model is the same function as its original, computed as precisely.

    Exit codes: 0 parity or nothing wrong, 1 differences or errors, 2 usage or environment.
    """
    if version:
        typer.echo(f"dit-parity {parity.__version__}")
        raise typer.Exit()


@app.command(epilog=_examples("parity pairs", "parity pairs --pairs tests/pairs --json"))
def pairs(folders: PairsOption = None, json_out: JsonOption = False) -> None:
    """List the pairs and how to get a missing source.

    Shows the sides, sizes, storage dtypes, number of taps and LoRA of each.
    """
    with _reported(json_out):
        project = find_project(Path.cwd(), folders or ())
        described = [describe_pair(pair, project.root) for pair in project.pairs().values()]
        _emit({"pairs": described}, render_pairs(described), json_out)


@app.command(epilog=_examples("parity doctor", "parity doctor --json"))
def doctor(folders: PairsOption = None, json_out: JsonOption = False) -> None:
    """Check this machine and say how to mend it.

    Looks at Python, torch, GPU, kernels, switches, the pairs' sources and the disk.
    Exits 1 where an error is found; a warning alone exits 0.
    """
    with _reported(json_out):
        checks = examine(find_project(Path.cwd(), folders or ()))
        _emit({"checks": as_records(checks), "worst": worst(checks)}, render_checks(checks), json_out)
    raise typer.Exit(int(worst(checks) == "error"))


app.command(epilog=record.EPILOG)(record.record)
app.command(hidden=True)(record.impact)
app.command("debug-lora", epilog=debug_lora.EPILOG)(debug_lora.debug_lora)
app.add_typer(weights.app, name="weights")


@app.command(epilog=_examples(*_RUN_EXAMPLES))
def run(
    pair: Annotated[str, typer.Argument(help="The pair's name, as `parity pairs` lists it.")],
    folders: PairsOption = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. Default: the pair's.")] = None,
    size: Annotated[str | None, typer.Option(help="A size the pair knows. Default: its first.")] = None,
    lora: Annotated[str, typer.Option(help="LoRA states: both, off or on.")] = "both",
    draws: Annotated[int | None, typer.Option(min=1, help="Inputs pooled per case. Default: the pair's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1. Default: the GPU if there is one.")] = None,
    expression: Annotated[
        str | None, typer.Option("-k", metavar="EXPR", help="Cases whose id has these words (and, or, not).")
    ] = None,
    report: Annotated[Path, typer.Option(metavar="DIR", help="Where the record is written.")] = Path("reports"),
    json_out: JsonOption = False,
) -> None:
    """Run one pair and judge every tap; write the record."""
    with _reported(json_out):
        chosen = choose(find_project(Path.cwd(), folders or ()).pairs(), pair)
        options = Options(seed=seed, draws=draws)
        settings = Settings(dtype_named(dtype), size_named(chosen, size), device_named(device or "auto"), options)
        states = lora_states(chosen, lora)
        cases = [case for case in cases_of(chosen, settings.build(chosen)) if case.lora in states]
        book = RunBook(report)
        errors = _judge(Engine({chosen.name: chosen}, settings), select(cases, expression), book)
        given = _repeated(folders, dtype=dtype, size=size, draws=draws, seed=seed or None, device=device)
        _emit(book.record(), _rendered(book, given), json_out)
        _say(errors, book)
    raise typer.Exit(_exit_code(book, errors))


def _judge(engine: Engine, cases: list[ParityCase], book: RunBook) -> dict[str, ParityError]:
    """Look every case up and write the record; return the errors of the LoRA states that could not be run."""
    errors: dict[str, ParityError] = {}
    for case in cases:
        try:
            book.add_case(engine.case_record(case))
            book.add_state(engine.state_record(case))
        except _NOT_HERE:
            raise
        except ParityError as error:
            errors[case.state] = error
    book.write(complete=not errors)
    return errors


def _rendered(book: RunBook, given: str) -> str:
    record, width = book.record(), min(shutil.get_terminal_size().columns, 120)
    parts = [render_run(record, width=width, color=_colored()).rstrip()] if book.cases else []
    for case in record["cases"]:
        if case["outcome"] in ("failed", "warned"):
            parts.append(failure_text(case, f'parity run {case["pair"]}{given} -k "{case["id"]}"'))
    return "\n\n".join([*parts, f"record: {book.shown_path}"])


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


def _emit(data: dict[str, Any], text: str, json_out: bool) -> None:
    typer.echo(as_json(data) if json_out else text)


def _colored() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def _reported(json_out: bool) -> Iterator[None]:
    """Turn this package's errors into words on stderr (JSON on stdout where asked for) and an exit code."""
    try:
        yield
    except ParityError as error:
        code = 2 if isinstance(error, _NOT_HERE) else 1
        if json_out:
            typer.echo(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": code}))
        typer.echo(f"parity: {error}", err=True)
        raise typer.Exit(code) from error


__all__ = ["app", "main"]
