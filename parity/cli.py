"""The command line. Commands exit 0 (parity, or nothing wrong), 1 (differences or errors), 2 (usage or environment)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

import parity
from parity.commands import answer, baseline, debug_lora, lora, new, record, report, run, summary, weights
from parity.commands.frame import JsonOption, PairsOption, emit, examples, reported
from parity.doctor import as_records, environment_key, examine, render_checks, worst
from parity.inventory import describe_pair, find_project, render_pairs

app = typer.Typer(
    name="parity", add_completion=True, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip


def main() -> None:
    """Run the command line; the entry point of the distribution."""
    app()


@app.callback(invoke_without_command=True, epilog=examples("parity pairs", "parity run my_pair", "parity doctor"))
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Judge whether a ported model is the same function as its original, computed as precisely.

    Exit codes: 0 parity or nothing wrong, 1 differences or errors, 2 usage or environment.
    """
    if version:
        typer.echo(f"dit-parity {parity.__version__}")
        raise typer.Exit()


@app.command(epilog=examples("parity pairs", "parity pairs --pairs tests/pairs --json"))
def pairs(folders: PairsOption = None, json_out: JsonOption = False) -> None:
    """List the pairs and how to get a missing source.

    Shows the sides, sizes, storage dtypes, number of taps and LoRA of each.
    """
    with reported(json_out):
        project = find_project(Path.cwd(), folders or ())
        described = [describe_pair(pair, project.root) for pair in project.pairs().values()]
        emit({"pairs": described}, render_pairs(described), json_out)


@app.command(epilog=examples("parity doctor", "parity doctor --json", "parity doctor --key"))
def doctor(
    folders: PairsOption = None,
    key: Annotated[
        bool, typer.Option("--key", help="Print one word for torch, device and switches, to key a cache with.")
    ] = False,
    json_out: JsonOption = False,
) -> None:
    """Check this machine and say how to mend it.

    Looks at Python, torch, GPU, kernels, switches, the pairs' sources and the disk.
    Exits 1 where an error is found; a warning alone exits 0.
    """
    if key:
        emit({"key": environment_key()}, environment_key(), json_out)
        return
    with reported(json_out):
        checks = examine(find_project(Path.cwd(), folders or ()))
        text = render_checks(checks, shutil.get_terminal_size().columns)
        emit({"checks": as_records(checks), "worst": worst(checks)}, text, json_out)
    raise typer.Exit(int(worst(checks) == "error"))


app.command(epilog=run.RUN_EPILOG)(run.run)
app.command(epilog=run.COMPARE_EPILOG, short_help="Judge two recordings of one pair; no model is loaded.")(run.compare)
app.command(epilog=record.EPILOG, short_help="Record one side of a pair, to judge it elsewhere.")(record.record)
for name, command in answer.commands().items():
    app.command(name, hidden=True)(command)
app.command(epilog=report.EPILOG, short_help="Write a run as one HTML file.")(report.report)
app.add_typer(lora.app, name="lora", short_help="Inspect, check, compare and convert LoRA files.")
app.command("debug-lora", epilog=debug_lora.EPILOG, short_help="Find out on which side a LoRA goes wrong.")(
    debug_lora.debug_lora
)
app.add_typer(weights.app, name="weights", short_help="Say what is in checkpoints and what differs.")
app.add_typer(baseline.app, name="baseline", short_help="Keep an accepted state, hold runs against it.")
app.command(epilog=new.EXAMPLES)(new.new)
app.command(epilog=summary.EPILOG)(summary.summary)


__all__ = ["app", "main"]
