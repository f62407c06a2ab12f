"""Measure the method on the bundled pair: planted bugs and benign variants, over seeds and token counts.

Every run is one JSON line; the table is made of them. Interrupted, it goes on where it was.

    python scripts/method_table.py --seeds 20 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS
from parity.loaded import LoadedSide
from parity.pair import Build
from parity.run import Options, StateResult, run_state
from parity.session import PairSession

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "results" / "method.jsonl"
PAGE = ROOT / "docs" / "method.md"
BEGIN, END = "<!-- method table: begin -->", "<!-- method table: end -->"
TOKENS = (128, 512, 2048)
PRECISION = (
    "adaln_low", "adaln_modulate_low", "norm_low", "time_embed_low", "gate_low", "rope_low", "rms_low", "final_low",
    "timestep_unrounded",
)  # fmt: skip
LOGIC = ("eps_1e_5", "gelu_erf")
BENIGN = ("attention_math", "attention_math_low", "attention_flash", "keys_reversed", "split_k", "row_chunks")
LANES = {"bfloat16": (*PRECISION, *LOGIC, *BENIGN), "float32": (*LOGIC, "sinusoid_fp64", *BENIGN)}


def main() -> None:
    """Run what is missing and write the table."""
    arguments = _arguments()
    if arguments.lane:
        _run_lane(arguments.lane, arguments.seeds, arguments.tokens, arguments.part, arguments.jobs)
        return
    if not arguments.table_only:
        _run_jobs(arguments)
    lines = table(_rows(RAW.read_text().splitlines()))
    print("\n".join(lines))
    _into_page(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="*", default=list(TOKENS))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--table-only", action="store_true", help="make the table of what was measured already")
    parser.add_argument("--lane", choices=sorted(LANES), help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_jobs(arguments: argparse.Namespace) -> None:
    tokens = [str(t) for t in arguments.tokens]
    for lane in LANES:
        counts = ["--seeds", str(arguments.seeds), "--jobs", str(arguments.jobs)]
        command = [sys.executable, __file__, "--lane", lane, *counts]
        jobs = [
            subprocess.Popen([*command, "--part", str(part), "--tokens", *tokens], cwd=ROOT)
            for part in range(arguments.jobs)
        ]
        if any(job.wait() for job in jobs):
            raise SystemExit("a job failed; run again to go on")


def _run_lane(lane: str, seeds: int, tokens: Iterable[int], part: int, jobs: int) -> None:
    torch.set_num_threads(1)
    RAW.parent.mkdir(parents=True, exist_ok=True)
    done = {_key(r) for r in _rows(RAW.read_text().splitlines())} if RAW.exists() else set()
    for count in tokens:
        for seed in range(part, seeds, jobs):
            missing = [n for n in LANES[lane] if (n, lane, count, seed) not in done]
            for row in _measured(lane, count, seed, missing):
                with RAW.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def _measured(lane: str, count: int, seed: int, names: list[str]) -> Iterable[dict[str, Any]]:
    """Run every variant against one reference, whose passes are shared."""
    base = replace(PAIR, inputs=partial(inputs_of, tokens=count))
    build = Build(dtype=getattr(torch, lane), seed=seed)
    reference: LoadedSide | None = None
    traces: dict[Any, Any] = {}
    for name in names:
        session = PairSession(PLANTS[name].apply(base), build, reference)
        reference, session.traces = session.reference, traces
        result = run_state(session, False, Options(seed=seed, singles=0))
        yield _row(name, lane, count, seed, result)


def _row(name: str, lane: str, count: int, seed: int, result: StateResult) -> dict[str, Any]:
    plant = PLANTS[name]
    right = [n for n in result.judged if result.facts[n].kind == plant.expect] if plant.kind != "benign" else []
    shown = max(right, key=lambda n: abs(result.judged[n].log_ratio), default=None)
    taps = result.draws[0]
    seen = [taps[n] for n in right or result.judged]
    return {
        "name": name, "lane": lane, "tokens": count, "seed": seed, "kind": plant.kind, "expect": plant.expect,
        "at_tap": _state(result, right) if right else None,
        "logic_error": max(e.logic_error for e in seen),
        "ratio": 2.718281828459045 ** result.judged[shown].log_ratio if shown else None,
        "projection": result.judged[shown].projection if shown else None,
        "impact": max((result.judged[n].impact or 0.0 for n in right), default=None),
        "identity": max(e.excesses["identity"].ratio for e in seen if "identity" in e.excesses),
        "fails": [n for n, j in result.judged.items() if j.fails],
        "different": [n for n, j in result.judged.items() if j.different],
        "amber": [n for n, j in result.judged.items() if j.amber],
        "not_judged": sum(j.cls.value == "not judged" for j in result.judged.values()),
        "taps": len(result.judged),
        "observer": result.observer,
    }  # fmt: skip


def _state(result: StateResult, right: list[str]) -> str:
    judged = [result.judged[n] for n in right]
    if any(j.fails for j in judged):
        return "fails"
    if any(j.different for j in judged):
        return "drowned"
    return "not judged" if any(j.cls.value == "not judged" for j in judged) else "passes"


def _rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in lines if line.strip()]
    return list({_key(row): row for row in rows}.values())  # measured twice: the later one counts


def _key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["name"], row["lane"], row["tokens"], row["seed"]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Make the table: planted bugs first, benign variants after."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["lane"], row["name"], row["tokens"]].append(row)
    bugs = [(k, g) for k, g in groups.items() if g[0]["kind"] != "benign"]
    benign = [(k, g) for k, g in groups.items() if g[0]["kind"] == "benign"]
    order = {n: i for i, n in enumerate((*PRECISION, "sinusoid_fp64", *LOGIC, *BENIGN))}
    by = lambda item: (item[0][0], order[item[0][1]], item[0][2])  # noqa: E731
    lines = [
        "| planted bug | dtype | tokens | expected at | logic_error | rounding_excess | impact | verdict at that tap |",
        "|---|---|---|---|---|---|---|---|",
        *[_bug_line(*item) for item in sorted(bugs, key=by)],
        "",
        "| benign variant | dtype | tokens | logic_error (max) | total rounding (max) | runs with a different tap "
        "| amber taps | not judged taps |",
        "|---|---|---|---|---|---|---|---|",
        *[_benign_line(*item) for item in sorted(benign, key=by)],
    ]
    return lines


def _bug_line(key: tuple[str, str, int], rows: list[dict[str, Any]]) -> str:
    lane, name, tokens = key
    states = [r["at_tap"] for r in rows]
    verdict = ", ".join(f"{s} {states.count(s)}" for s in ("fails", "drowned", "not judged", "passes") if s in states)
    ratios = [r["ratio"] for r in rows if r["projection"]]
    projections = [r["projection"] for r in rows if r["projection"]]
    excess = f"{_spread(ratios)} ({max(set(projections), key=projections.count)})" if ratios else "in its limits"
    logic = _spread([r["logic_error"] for r in rows])
    impact = _spread([r["impact"] for r in rows if r["impact"]])
    start = f"| {name} | {lane} | {tokens} | {rows[0]['expect']}"
    return f"{start} | {logic} | {excess} | {impact} | {verdict} of {len(rows)} |"


def _benign_line(key: tuple[str, str, int], rows: list[dict[str, Any]]) -> str:
    lane, name, tokens = key
    logic, total = max(r["logic_error"] for r in rows), max(r["identity"] for r in rows)
    different, amber = sum(bool(r["different"]) for r in rows), sum(len(r["amber"]) for r in rows)
    taps, blind = sum(r["taps"] for r in rows), sum(r["not_judged"] for r in rows)
    return (
        f"| {name} | {lane} | {tokens} | {logic:.0e} | {total:.2f} | {different} of {len(rows)} | {amber} of {taps} "
        f"| {blind} of {taps} |"
    )


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    low, middle, high = min(values), statistics.median(values), max(values)
    if high == 0:
        return "0"
    return f"{_short(middle)} ({_short(low)}..{_short(high)})"


def _short(value: float) -> str:
    return f"{value:.1e}" if value and (abs(value) < 0.01 or abs(value) >= 1000) else f"{value:.2f}"


def _into_page(lines: list[str]) -> None:
    if PAGE.exists():
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
