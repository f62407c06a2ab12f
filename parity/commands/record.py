"""`parity record`: one side's part of a verdict, made in the environment that side lives in."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from parity.captured import captured_inputs
from parity.choices import DTYPES, device_named, dtype_named, lora_states, size_named
from parity.commands.frame import (
    DeviceOption,
    DrawsOption,
    DtypeOption,
    JsonOption,
    LoraOption,
    PairArgument,
    PairsOption,
    SeedOption,
    SizeOption,
    TwinsOption,
    emit,
    examples,
    reported,
    warned,
)  # fmt: skip
from parity.engine import Settings
from parity.errors import UsageError
from parity.inventory import find_project
from parity.native_recorder import record_native
from parity.pair import ModelPair, variants_of
from parity.recorded import Recorded
from parity.recorder import Plan, record_reference
from parity.stage import Options

_EXAMPLES = (
    "parity record my_pair --side reference -o recordings/reference",
    "parity record my_pair --side native --reference recordings/reference -o recordings/native",
    "parity compare recordings/reference recordings/native",
)
SIDES = ("reference", "native")


def record(
    pair: PairArgument,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the recording goes.")],
    side: Annotated[str, typer.Option(help="Which side runs here: reference or native.")] = "reference",
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the native: the reference's recording.")
    ] = None,
    folders: PairsOption = None,
    dtype: DtypeOption = None,
    size: SizeOption = None,
    lora: LoraOption = "both",
    draws: DrawsOption = None,
    seed: SeedOption = 0,
    twins: TwinsOption = 3,
    device: DeviceOption = None,
    native_dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="TAP=DTYPE", help="A tap, or kind of tap, where the native is coarser; repeatable."),
    ] = None,
    from_call: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Run this pipeline and take what enters the reference's forward."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a recording, or add to it.")] = False,
    json_out: JsonOption = False,
) -> None:
    """Record one side of a pair, to be judged in another environment.

    The reference is recorded first; the native is then judged against it by `pytest -m parity --parity-reference DIR`,
    or recorded too and compared by `parity compare`.
    """
    with reported(json_out):
        if side not in SIDES:
            raise UsageError.unknown("side", side, SIDES)
        chosen = find_project(Path.cwd(), folders or ()).pair(pair, warned)
        options = Options(seed=seed, draws=draws, twins=twins)
        settings = Settings(dtype_named(dtype), size_named(chosen, size), device_named(device or "auto"), options)
        build = settings.build(chosen)
        variants = variants_of(chosen) if from_call is None else ("",)
        states = tuple((on, variant) for on in lora_states(chosen, lora) for variant in variants)
        coarser = _native_dtypes(chosen, {t.name: t.kind for t in chosen.taps(build)}, native_dtype or [])
        plan = Plan(chosen, build, options, states, coarser)
        tell = _quiet if json_out else _progress
        if side == "native":
            _record_native(plan, reference, out, resume, tell)
        else:
            if from_call is not None:
                plan = replace(plan, inputs={"": captured_inputs(chosen, build, _function(from_call))})
            record_reference(plan, out, resume=resume, tell=tell)
        emit({"recording": str(out)}, f"recorded: {out}", json_out)


def _record_native(plan: Plan, reference: Path | None, out: Path, resume: bool, tell: Any) -> None:
    if reference is None:
        raise UsageError(
            "a native is recorded in lockstep with a reference: name its recording by --reference DIR\n"
            "make it in the reference's environment: parity record PAIR --side reference -o DIR"
        )
    recorded = Recorded(reference, plan.pair, plan.build, plan.options)
    record_native(plan, recorded, out, resume=resume, tell=tell)


def _native_dtypes(pair: ModelPair, taps: Mapping[str, str], given: list[str]) -> dict[str, torch.dtype]:
    found: dict[str, torch.dtype] = {}
    for words in given:
        name, _, dtype = words.partition("=")
        if dtype not in DTYPES:
            raise UsageError.unknown("dtype", dtype, DTYPES)
        meant = [tap for tap, kind in taps.items() if name in (tap, kind)]
        if not meant:
            raise UsageError.unknown(f"tap of {pair.name}", name, {*taps, *taps.values()})
        found.update(dict.fromkeys(meant, DTYPES[dtype]))
    return found


def _function(words: str) -> Any:
    module, _, name = words.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--from-call {words!r} names no function: {error}\nvalid: package.module:function") from error


def _progress(text: str) -> None:
    typer.echo(f"  {text}", err=True)


def _quiet(text: str) -> None:
    pass


EPILOG = examples(*_EXAMPLES)
__all__ = ["EPILOG", "record"]
