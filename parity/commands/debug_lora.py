"""`parity debug-lora`: both sides in their own interpreters, then the four comparisons that isolate a LoRA problem."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.case import cases_of
from parity.choices import device_named, dtype_named, lora_states, size_named
from parity.commands.frame import (
    DeviceOption,
    DtypeOption,
    JsonOption,
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
from parity.errors import LoraError, ParityError
from parity.four import Apart, FourComparisons, four_comparisons
from parity.inventory import find_project
from parity.io.recording import RecordingFolder
from parity.pair import ModelPair
from parity.propagation import Interpreter, StageFailed, ask
from parity.references import ReferenceSources
from parity.report.lora import lora_rows, lora_table
from parity.stage import Options

EPILOG = examples("parity debug-lora my_pair --reference-python envs/original/bin/python --native-python python")
_LITTLE = 0.1
"""An effect of the LoRA on one side below this share of that on the other: it was not applied, or to a few layers."""


def debug_lora(
    pair: PairArgument,
    reference_python: Annotated[
        str, typer.Option(metavar="PYTHON", show_default="this one", help="Interpreter the reference lives in.")
    ] = sys.executable,
    native_python: Annotated[
        str, typer.Option(metavar="PYTHON", show_default="this one", help="Interpreter the native lives in.")
    ] = sys.executable,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where the recordings go.")
    ] = Path("reports/debug_lora"),
    folders: PairsOption = None,
    dtype: DtypeOption = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    json_out: JsonOption = False,
) -> None:
    """Isolate a LoRA problem: base against base, LoRA against LoRA, and what the LoRA does to each side.

    Records the reference in its interpreter and the native in its own, then compares. Exits 1 where they differ.
    """
    with reported(json_out):
        chosen = find_project(Path.cwd(), folders or ()).pair(pair, warned)
        lora_states(chosen, "on")  # a pair without LoRA is refused here
        asked = {"--dtype": dtype, "--size": size, "--seed": str(seed), "--device": device}
        words = [word for name, value in asked.items() if value is not None for word in (name, value)]
        stages = _Stages(
            chosen, out, words, Interpreter(reference_python, tuple(folders or ())),
            Interpreter(native_python, tuple(folders or ())), (lambda text: None) if json_out else _tell,
        )  # fmt: skip
        recorded, native = stages.run()
        options = Options(seed=seed, draws=1)
        sources = ReferenceSources(
            folders={pair: recorded}, natives={pair: native},
            ask_reference=partial(ask, stages.reference), ask_native=partial(ask, stages.native),
        )  # fmt: skip
        settings = Settings(
            dtype_named(dtype), size_named(chosen, size), device_named(device or "auto"), options, sources
        )
        found = _compared(chosen, settings, recorded, native)
        states, told = _judged(chosen, settings)
        data = {**found.as_dict(), "table": _table(found, states), "lora_findings": told}
        data["states"] = {name: {k: v for k, v in held.items() if k != "cases"} for name, held in states.items()}
        emit(data, _rendered(chosen, found, states, told), json_out)
    wrong = any(s["failed"] or s["error"] for s in states.values())
    raise typer.Exit(int(wrong or bool(told) or _off(found)))


class _Stages:
    """Records both sides, each in its interpreter."""

    def __init__(
        self, pair: ModelPair, out: Path, words: list[str], reference: Interpreter, native: Interpreter, tell: Any
    ) -> None:
        self.pair, self.out, self.words, self.reference, self.native = pair, out, words, reference, native
        self._tell = tell

    def run(self) -> tuple[Path, Path]:
        """Return the two recordings; the reference is recorded again where the native has coarser dtypes.

        A recording of an earlier call goes first: what was mended since must show.
        """
        for name in ("reference", "native", "reference_for_native", "native_for_reference"):
            RecordingFolder(self.out / name).remove()
        recorded = self._record_reference(self.out / "reference", [])
        try:
            return recorded, self._record_native(recorded, self.out / "native")
        except StageFailed as error:
            if error.answer.get("error") != "OtherDtypes":
                raise
            dtypes = error.answer["native_dtypes"]
        again = [word for name, dtype in dtypes.items() for word in ("--native-dtype", f"{name}={dtype}")]
        recorded = self._record_reference(self.out / "reference_for_native", again)
        return recorded, self._record_native(recorded, self.out / "native_for_reference")

    def _record_reference(self, folder: Path, more: list[str]) -> Path:
        self._tell(f"stage 1: the reference, in {self.reference.python}")
        fixed = ["--side", "reference", "-o", str(folder), "--resume", "--json", "--draws", "1"]
        self.reference.run("record", self.pair.name, *fixed, *self.words, *more)
        return folder

    def _record_native(self, recorded: Path, folder: Path) -> Path:
        self._tell(f"stage 2: the native, in {self.native.python}")
        fixed = ["--side", "native", "--reference", str(recorded), "-o", str(folder)]
        self.native.run("record", self.pair.name, *fixed, "--resume", "--json", "--draws", "1", *self.words)
        return folder


def _compared(pair: ModelPair, settings: Settings, recorded: Path, native: Path) -> FourComparisons:
    seed = settings.options.seed
    passes = [
        [RecordingFolder(f).stored(f"lora_{s}-seed{seed}", "free").trace() for s in ("off", "on")]
        for f in (recorded, native)
    ]
    taps = pair.taps(settings.build(pair))
    return four_comparisons(taps, (passes[0][0], passes[0][1]), (passes[1][0], passes[1][1]))


def _judged(pair: ModelPair, settings: Settings) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Judge both LoRA states of the pair's default inputs; return them, and what is wrong with how the LoRA is on."""
    engine = Engine({pair.name: pair}, settings)
    states: dict[str, dict[str, Any]] = {}
    told: list[str] = []
    for state in ("lora_off", "lora_on"):
        cases = [c for c in cases_of(pair, settings.build(pair)) if c.state == state]
        try:
            records = [engine.case_record(case) for case in cases]
            told = engine.state_record(cases[0])["lora_findings"]
        except ParityError as error:
            states[state] = {"error": str(error), "kind": type(error).__name__, **_counted([])}
            continue
        states[state] = {"error": None, "kind": None, **_counted(records)}
    return states, told


def _counted(records: list[dict[str, Any]]) -> dict[str, Any]:
    failed = [record["tap"] for record in records if record["outcome"] == "failed"]
    outcomes = Counter(record["outcome"] for record in records)
    return {"failed": failed, "outcomes": dict(outcomes), "cases": {record["tap"]: record for record in records}}


def _table(found: FourComparisons, states: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = [row.as_dict() for row in found.rows]
    return lora_rows(rows, states["lora_off"]["cases"], states["lora_on"]["cases"])


def _rendered(pair: ModelPair, found: FourComparisons, states: dict[str, dict[str, Any]], told: list[str]) -> str:
    out = found.output
    lines = [
        f"{pair.name}: {pair.reference.name} (reference) against {pair.native.name} (native)", "",
        "[1] base models, without the LoRA", *_agreement(out.base, states["lora_off"]), "",
        "[2] both with the LoRA", *_agreement(out.lora, states["lora_on"]), "",
        "[3] what the LoRA does to the reference", *_effect(out.on_reference), "",
        "[4] what the LoRA does to the native", *_effect(out.on_native),
        f"    effect over the reference's: {out.ratio:.3g} in size, cosine {out.alignment:.4f}, "
        f"apart by {out.of_effect:.2g} of it", "",
        *lora_table(_table(found, states), full=True), "",
        *(f"    {words}" for words in told), *[""] * bool(told),
        f"=> {_conclusion(found, states, told)}",
    ]  # fmt: skip
    return "\n".join(lines)


def _agreement(apart: Apart, state: dict[str, Any]) -> list[str]:
    lines = [f"    final output: MSE {apart.mse:.2e}, relative {apart.rel_l2:.2e}"]
    if state["error"]:
        return [*lines, f"    not judged: {state['error'].splitlines()[0]}"]
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(state["outcomes"].items()))
    lines.append(f"    taps: {counted}")
    if state["failed"]:
        lines.append(f"    differs first at {state['failed'][0]}")
    return lines


def _effect(apart: Apart) -> list[str]:
    return [f"    final output: MSE {apart.mse:.2e}, relative {apart.rel_l2:.2e}"]


def _off(found: FourComparisons) -> bool:
    """Whether the LoRA's effect is missing on a side."""
    return not _LITTLE < found.output.ratio < 1 / _LITTLE


def _conclusion(found: FourComparisons, states: dict[str, dict[str, Any]], told: list[str]) -> str:
    base, lora = states["lora_off"], states["lora_on"]
    if base["failed"] or base["error"]:
        return "the base models differ: a conversion problem, to be mended before the LoRA is looked at"
    if lora["kind"] == LoraError.__name__ or _off(found):
        side = "native" if not found.output.ratio >= 1 / _LITTLE else "reference"
        return f"the LoRA is not applied to the {side}, or to few of its layers"
    if lora["failed"] or lora["error"] or told:
        how = told[0] if told else "scale, keys, layers"
        return f"the base models agree and the LoRA states differ: the LoRA is applied differently ({how})"
    return "parity: base and LoRA agree, and the LoRA does the same to both"


def _tell(text: str) -> None:
    typer.echo(f"  {text}", err=True)


__all__ = ["EPILOG", "debug_lora"]
