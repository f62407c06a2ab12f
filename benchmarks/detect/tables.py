"""From rows to Markdown, and the goals."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.detect.gates import GATES
from benchmarks.detect.statistics import held_out_table, upper_bound

Row = dict[str, Any]
PLANTED = ("signature", "mutation", "plant")


def expressible(rows: Iterable[Row]) -> list[Row]:
    """Return the planted bugs that change what the native computes on that input, and are no equivalent mutants."""
    silent = ("no effect", "equivalent", "masked", "broken")
    return [r for r in rows if r["source"] in PLANTED and r["status"] not in silent]


def of(rows: Iterable[Row], source: str) -> list[Row]:
    """Return the rows of a source that could be run."""
    return [r for r in rows if r["source"] == source and r.get("status") != "broken"]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%} ({part} of {whole})" if 0 < part < whole else (f"{part} of {whole}" if whole else "-")


def _count(rows: Sequence[Row], test: Callable[[Row], Any]) -> int:
    return sum(bool(test(r)) for r in rows)


def _gate_cells(rows: Sequence[Row]) -> list[str]:
    seen = [r["gates"] for r in rows if r.get("gates") is not None]
    return [f"{sum(g in found for found in seen) / len(seen):.0%}" if seen else "-" for g in GATES]


def _line(name: str, rows: Sequence[Row]) -> str:
    found = [r for r in rows if r["status"] == "detected"]
    times = [r["seconds"] for r in found]
    cells = [
        _share(len(found), len(rows)), _share(_count(found, lambda r: r["fails"]), len(found)),
        _share(_count(found, lambda r: r["placed"] is not False), len(found)),
        _share(_count(found, lambda r: r["named"]), len(rows)),
        str(_count(rows, lambda r: r["status"] == "not judged")),
        f"{statistics.median(times):.1f}" if times else "-", *_gate_cells(rows),
    ]  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |"


COLUMNS = ("bugs", "detected", "of these failed", "placed", "named first", "not judged", "s a run", *GATES)
HEAD = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]


def grouped(rows: Sequence[Row], by: Callable[[Row], str]) -> list[str]:
    """Make a table with a line for each group."""
    names = sorted({by(r) for r in rows})
    return [*HEAD, *(_line(n, [r for r in rows if by(r) == n]) for n in names)]


def summary_table(rows: Iterable[Row]) -> list[str]:
    """Make the table of the README: categories, published bugs, what needs drawn inputs, harmless changes."""
    rows = list(rows)
    bugs = expressible(rows)
    lines = grouped(bugs, lambda r: r["category"])
    lines.append(_line("**all planted**", bugs))
    if published := of(rows, "published"):
        lines.append(_line("**published, before the fix**", published))
        after = [{**r, "gates": r["after_gates"]} for r in published]
        alarmed = _count(published, lambda r: r["after"])
        lines.append(_quiet_line("published, after the fix: alarms", alarmed, after))
    if benign := of(rows, "benign"):
        lines.append(_quiet_line("**harmless changes: alarms**", _count(benign, lambda r: r["different"]), benign))
    return lines


def _quiet_line(name: str, alarms: int, rows: Sequence[Row]) -> str:
    seconds = statistics.median(r["seconds"] for r in rows)
    return f"| {name} | {alarms} of {len(rows)} | | | | | {seconds:.1f} | {' | '.join(_gate_cells(rows))} |"


PAGE = """\
# Detection: what is found, placed and named

Made by `make bench-detect`: {count:,} runs, {hours:.2f} processor hours. Planted bugs in the native of the bundled pair
(`longcat`) and of real ports; `fixtures/mutations/`, `fixtures/plants.py` and the `plant` of every signature. A bug
counts where it changes a bit of what the native computes on that input and is no equivalent mutant.

- *Detected*: a case that is healthy without the plant differs. *Failed*: at least one such case fails; else it warns,
  since what is lost drowns in the original's own rounding.
- *Placed*: the first tap that differs is the planted one (of a plant in all blocks, the first one where it changes a
  bit).
- *Named first*: the first cause given is an edit that is proved to undo the bug (a repair of the native with its
  number, or the nearest variant of the original), the wrong weight, or the plant's own signature or words. A line of
  code where the two sides part names nothing.
- The last columns: the same outputs under the usual gates: MSE 1e-4, cosine 0.999, `allclose` with atol = rtol = 0.1,
  FlashAttention's rule (error at most twice the original's own), torch's `same` with a float64 reference.

{summary}

Explained, repair included, within 5 s: {fast}. Errors before any verdict (an adapter that changes nothing): {errors}.

## By pair and dtype

{by_pair}

## By where it is planted, and on which input

{by_place}

## Equivalent mutants

A plant is equivalent where the planted native's free-running values agree with the healthy native's in float64 to
1e-12 at the output and at every tap, whatever bits differ: the original takes no part in that, nor does lockstep. Such
a plant is not counted as missed; it must not be called another function.

{equivalent}

## Bugs that no default input shows

{exposed}

## False alarms

{false_alarms}

{held_out}

## Published bugs

{published}

## What was not found, placed or named

{open}
"""


def page(rows: Iterable[Row], seconds: float) -> str:
    """Return the page that is written."""
    rows = list(rows)
    bugs = expressible(rows)
    explained = [r["explained"] for r in bugs if r["status"] == "detected" and r["pair"] == "longcat"]
    return PAGE.format(
        count=len(rows), hours=sum(r["seconds"] for r in rows) / 3600,
        summary="\n".join(summary_table(rows)),
        fast=_share(sum(s < 5 for s in explained), len(explained)),
        errors=_count(bugs, lambda r: r.get("by") == "error"),
        by_pair="\n".join(grouped(bugs, lambda r: f"{r['pair']}, {r['dtype']}")),
        by_place="\n".join(grouped(bugs, _place)),
        equivalent="\n".join(_equivalent(rows)), exposed="\n".join(_exposed(of(rows, "exposed"))),
        false_alarms="\n".join(_false_alarms(of(rows, "benign"))), held_out="\n".join(held_out_table(rows)),
        published="\n".join(_published(of(rows, "published"))), open="\n".join(_open(rows, bugs)),
    )  # fmt: skip


def _place(row: Row) -> str:
    where = {"": "outside blocks", "all": "all blocks"}.get(row["where"], f"{row['where']} block")
    return f"{where}, {'drawn' if row['inputs'].startswith('drawn') else 'default'} inputs"


def _equivalent(rows: Sequence[Row]) -> list[str]:
    found = [r for r in rows if r.get("status") == "equivalent"]
    names = Counter(r["name"] for r in found)
    alarmed = Counter(r["name"] for r in found if r["alarm"])
    lines = ["| plant | runs | called another function | apart in float64, at most |", "|---|---|---|---|"]
    apart = {n: max(r["apart"] for r in found if r["name"] == n) for n in names}
    return [*lines, *(f"| {n} | {c} | {alarmed[n]} | {apart[n]:.0e} |" for n, c in sorted(names.items()))]


def _exposed(rows: Sequence[Row]) -> list[str]:
    lines = ["| plant | bits on the default input | drawn inputs | input that shows it |", "|---|---|---|---|"]
    shown = [(str(r["input"])[:90].rsplit(", ", 1)[0], r) for r in rows]
    return [*lines, *(f"| {r['name']} | {r['default']} | {r['status']} | `{text}, ...` |" for text, r in shown)]


def _false_alarms(rows: Sequence[Row]) -> list[str]:
    """Say how many harmless changes alarmed, by change, per case and per run."""
    head = ("change", "runs", "cases", "runs with a different case", "amber taps", "not judged taps")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in [*sorted({r["name"] for r in rows}), "all"]:
        mine = [r for r in rows if name in (r["name"], "all")]
        cases, wrong = sum(r["cases"] for r in mine), _count(mine, lambda r: r["different"])
        amber, blind = sum(len(r["amber"]) for r in mine), sum(r["not_judged"] for r in mine)
        bound = f" (95 % bound {upper_bound(wrong, len(mine)):.2%})" if name == "all" else ""
        lines.append(f"| {name} | {len(mine):,} | {cases:,} | {wrong}{bound} | {amber} | {blind:,} |")
    return lines


def _published(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| bug | what | before: engine | first cause | after: engine | gates that see it before |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        cause = (r["likely"] or ["-"])[0].replace("|", "/")[:110]
        gates = ", ".join(r["gates"]) or "none"
        after = "silent" if not r["after"] else f"alarms at {r['after'][0]}"
        where = r["status"] if r["status"] == "missed" else f"{r['status']}{'' if r['placed'] else ', misplaced'}"
        bug = f"[{r['name']}]({r['link']}), seed {r['seed']}"
        lines.append(f"| {bug} | {r['what']} | {where} | {cause} | {after} | {gates} |")
    return lines


def _open(rows: Sequence[Row], bugs: Sequence[Row]) -> list[str]:
    """List what is wrong, by name."""
    lines = [f"- broken: {r['key']}: {r['why']}" for r in rows if r.get("status") == "broken"]
    for word, test in (
        ("missed", lambda r: r["status"] == "missed"), ("not judged", lambda r: r["status"] == "not judged"),
        ("placed elsewhere", lambda r: r.get("placed") is False), ("not named", lambda r: r.get("named") is False),
    ):  # fmt: skip
        found = [r for r in bugs if test(r)]
        lines += [f"- {word}: {_told(r)}" for r in sorted(found, key=lambda r: r["key"])]
    hidden = Counter(r["status"] for r in rows if r.get("status") in ("no effect", "masked"))
    return [*lines, f"- not expressible there, so not counted: {dict(hidden)}"]


def _told(row: Row) -> str:
    cause = (row["likely"] or ["no cause"])[0].replace("|", "/")[:140]
    first = "" if row.get("placed") is not False else f" at {row['first']} for {row['expect'][0]}"
    return f"{row['name']} ({row['pair']} {row['dtype']} {row['where']} {row['site']} {row['inputs']}){first}: {cause}"


def missed_goals(rows: Iterable[Row]) -> list[str]:
    """Say which goals the rows miss."""
    rows = list(rows)
    bugs, benign = expressible(rows), of(rows, "benign")
    found = [r for r in bugs if r["status"] == "detected"]
    named = _count(bugs, lambda r: r.get("named"))
    goals = {
        f"detected {len(found)} of {len(bugs)}": len(found) < len(bugs),
        f"placed elsewhere {_count(found, lambda r: r['placed'] is False)}": any(r["placed"] is False for r in found),
        f"named {named} of {len(bugs)}, 95 % wanted": bool(bugs) and named < 0.95 * len(bugs),
        f"false alarms in {_count(benign, lambda r: r['different'])} of {len(benign)} benign runs":
            any(r["different"] for r in benign),
        "an equivalent mutant called another function": any(r.get("alarm") for r in rows),
        "a published bug missed": any(r["status"] == "missed" for r in of(rows, "published")),
        "an alarm after a published fix": any(r["after"] for r in of(rows, "published")),
        "something could not be run": any(r.get("status") == "broken" for r in rows),
    }  # fmt: skip
    return [words for words, missed in goals.items() if missed]
