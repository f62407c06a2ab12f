"""`parity baseline`: accept a run, show what is accepted, hold a run's record against it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.errors import UsageError
from parity.gate.accept import Acceptance, Accepted, accept, device_of
from parity.gate.baseline import Baseline
from parity.gate.findings import Gated, Terms
from parity.gate.plain import to_plain
from parity.gate.whole import judge_run, scopes_of
from parity.io.baselines import change_baseline, read_baseline
from parity.io.records import RECORD, as_written, read_record
from parity.known import Known, checked_day, today
from parity.report.gate import render_baseline, render_gate

DEFAULT = Path("parity_baseline.json")
app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
    help="Keep an accepted state per kind of device, and hold runs against it.",
    epilog=examples("parity baseline accept reports/parity.json", "parity baseline check reports/parity.json"),
)  # fmt: skip

RunArgument = Annotated[Path, typer.Argument(metavar="RUN.json", help="A run's record: reports/parity.json.")]
BaselineOption = Annotated[Path, typer.Option("--baseline", "-b", metavar="FILE", help="The accepted states.")]


@app.command(
    "accept",
    epilog=examples(
        "parity baseline accept reports/parity.json",
        'parity baseline accept reports/parity.json -o gpu.json --reason "saves memory" --owner maintainers '
        "--expires 2027-01-31",
    ),
)
def accept_run(
    run: RunArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The accepted states, made or changed.")
    ] = DEFAULT,
    reason: Annotated[str | None, typer.Option(help="Why differences that are not known yet are accepted.")] = None,
    owner: Annotated[str | None, typer.Option(help="Who answers for them.")] = None,
    expires: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="The last day they are accepted.")] = None,
    logic: Annotated[bool, typer.Option("--logic", help="Accept differences of logic too, until they expire.")] = False,
    json_out: JsonOption = False,
) -> None:
    """Take a run over as the accepted state of its kind of device.

    What the run has no state of stays as it was: several runs make one file.
    Differences need a reason, an owner and a last day; known ones that are gone are dropped.
    """
    with reported(json_out):
        asked = Acceptance(_known(reason, owner, expires), logic)
        record = read_record(run)
        done: list[Accepted] = []

        def change(before: Baseline) -> Baseline:
            with as_written(run, RECORD):
                done.append(accept(before, record, asked, today()))
            return done[-1].baseline

        written = change_baseline(output, change)
        lines = [f"accepted on {done[0].device}: {output}", *(f"  {line}" for line in done[0].lines)]
        data = {"file": str(written), "device": done[0].device, "accepted": done[0].lines}
        emit(data, "\n".join(lines), json_out)


def _known(reason: str | None, owner: str | None, expires: str | None) -> Known | None:
    """Return what is said for new differences.

    Raises:
        UsageError: only a part is said, or the last day is past.
    """
    given = {"--reason": reason, "--owner": owner, "--expires": expires}
    missing = [name for name, value in given.items() if not (value or "").strip()]
    if len(missing) == len(given):
        return None
    if missing:
        raise UsageError(f"a known difference needs --reason, --owner and --expires; missing: {', '.join(missing)}")
    assert reason is not None
    assert owner is not None
    assert expires is not None
    if checked_day(expires) < today():
        raise UsageError(f"--expires {expires} is past: today is {today()}")
    return Known(reason, owner, expires)


@app.command(
    epilog=examples("parity baseline show", "parity baseline show --baseline gpu.json --json"),
    short_help="Show what is accepted.",
)
def show(file: BaselineOption = DEFAULT, json_out: JsonOption = False) -> None:
    """Show what is accepted: states per kind of device, and known differences with reason, owner and last day."""
    with reported(json_out):
        baseline = read_baseline(file)
        emit(to_plain(baseline), render_baseline(baseline, today()), json_out)


@app.command(
    epilog=examples("parity baseline check reports/parity.json", "parity baseline check RUN.json -b gpu.json"),
    short_help="Hold a run's record against the accepted state.",
)
def check(
    run: RunArgument,
    file: BaselineOption = DEFAULT,
    require_exact: Annotated[
        bool, typer.Option("--require-exact", help="A tap that is no longer bit-exact fails.")
    ] = False,
    json_out: JsonOption = False,
) -> None:
    """Hold a run's record against the accepted state, as pytest does with `--parity-baseline`.

    Exits 1 where something is new, worse, not judged any more, missing or expired.
    """
    with reported(json_out):
        gate = gate_of(run, file, require_exact)
        emit(gate, render_gate(gate), json_out)
    raise typer.Exit(int(not gate["passed"]))


def gate_of(run: Path, file: Path, require_exact: bool) -> dict[str, Any]:
    """Return what the gate says of a record.

    Raises:
        RecordError: a file is not usable.
        UsageError: nothing is accepted for this kind of device.
    """
    record, baseline = read_record(run), read_baseline(file)
    with as_written(run, RECORD):
        if not record["complete"]:
            raise UsageError(f"{run} is of a run that was cut short: what it lacks cannot be told")
        kind = device_of(record)
        device = baseline.on(kind, str(file))
        gated: Gated = judge_run(record, device, Terms(today(), require_exact), scopes_of(record, device))
        return gated.as_dict(str(file), kind)
