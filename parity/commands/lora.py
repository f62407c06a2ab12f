"""`parity lora`: inspect LoRA files, check them against a model, compare and convert them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.frame import JsonOption, emit, examples, reported
from parity.commands.key_maps import FORMS, key_map_named
from parity.commands.lora_converter import EPILOG, converter
from parity.errors import LoraFileError, UsageError
from parity.io.lora_files import open_base, open_lora, write_lora
from parity.lora import compare, inspect
from parity.lora.base import Base
from parity.lora.check import Fit, fit
from parity.lora.conversion import fits, mapped, proved, recompress, sound, thin, whole
from parity.lora.formats import Dialect, Given, LoraFile, dialect_of, read_lora, writer, writers
from parity.lora.loaded import LoadedLora
from parity.lora.moved import moved, worded
from parity.lora.problems import Problem, failed, some
from parity.lora.values import measured, value_problems

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help=__doc__,
    epilog=examples("parity lora inspect my_lora.safetensors", "parity lora check my_lora.safetensors --base dit"),
)  # fmt: skip

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA file, or the folder of one.")]
BaseOption = Annotated[
    Path | None, typer.Option(metavar="MODEL", help="The model the LoRA is for: a file, or a folder of .safetensors.")
]
AlphaOption = Annotated[
    float | None, typer.Option("--lora-alpha", help="Alpha of the training, used where the file has none.")
]
RankOption = Annotated[int | None, typer.Option("--r", min=1, help="The rank expected; another is an error.")]
AdapterOption = Annotated[str | None, typer.Option("--adapter", help="Which adapter, where a file holds several.")]
PrefixOption = Annotated[str | None, typer.Option("--prefix", help="Which component, as its keys begin.")]
MapOption = Annotated[str | None, typer.Option("--map", metavar="MAP", help=f"A key map: {FORMS}.")]
ReverseOption = Annotated[bool, typer.Option("--reverse", help="Take the key map from native to reference.")]
RtolOption = Annotated[float, typer.Option(min=0, help="Relative distance below which two changes are the same.")]


@app.command(
    "inspect", epilog=examples("parity lora inspect my_lora.safetensors --base my_model.safetensors"),
    short_help="Say what a file holds.",
)  # fmt: skip
def inspect_file(
    file: FileArgument,
    base: BaseOption = None,
    lora_alpha: AlphaOption = None,
    r: RankOption = None,
    adapter: AdapterOption = None,
    prefix: PrefixOption = None,
    json_out: JsonOption = False,
) -> None:
    """Say what a file holds: dialect, targets, ranks, scaling and where it came from, sizes of the changes, problems.

    Exits 0 where all is well or there are warnings, 1 where there is an error.
    """
    with reported(json_out):
        model = _base(base)
        given = Given(r, lora_alpha, adapter, prefix, model.modules if model else None)
        try:
            found = inspect.inspected(_read(file, given), model)
        except LoraFileError as error:
            found = inspect.unreadable(error)
        emit(found.as_dict(), inspect.rendered(found), json_out)
    raise typer.Exit(int(failed(found.problems)))


@app.command(
    "check", epilog=examples("parity lora check my_lora.safetensors --base my_model.safetensors"),
    short_help="Check a file against a model.",
)  # fmt: skip
def check_file(
    file: FileArgument,
    base: Annotated[Path, typer.Option(metavar="MODEL", help="The model: a file, or a folder of .safetensors.")],
    lora_alpha: AlphaOption = None,
    r: RankOption = None,
    adapter: AdapterOption = None,
    prefix: PrefixOption = None,
    json_out: JsonOption = False,
) -> None:
    """Check a file against a model by names and shapes; of the model only the header is read.

    Exits 1 where a module is missing, has another shape, or none is matched.
    """
    with reported(json_out):
        model = _base(base)
        assert model is not None
        lora, found = None, Fit()
        try:
            lora = _read(file, Given(r, lora_alpha, adapter, prefix, model.modules))
            found = fit(lora, model)
            values = value_problems(lora, {name: measured(target) for name, target in lora.targets.items()})
            problems = [*lora.problems, *values, *found.problems]
        except LoraFileError as error:
            problems = list(inspect.unreadable(error).problems)
        emit(_checked(lora, found, problems), _check_text(lora, found, problems), json_out)
    raise typer.Exit(int(failed(problems)))


@app.command(
    "diff", epilog=examples("parity lora diff original.safetensors converted.safetensors"),
    short_help="Compare what two files do to each weight.",
)  # fmt: skip
def diff_files(
    first: Annotated[Path, typer.Argument(metavar="A", help="A LoRA file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, in any dialect.")],
    key_map: MapOption = None,
    reverse: ReverseOption = False,
    base: BaseOption = None,
    lora_alpha: AlphaOption = None,
    rtol: RtolOption = compare.RTOL,
    json_out: JsonOption = False,
) -> None:
    """Compare what two files do to each weight, across dialects; with a key map A's names become B's.

    Exits 1 where they differ. Where B is a multiple of A the factor is named.
    """
    with reported(json_out):
        model, rules = _base(base), key_map_named(key_map, reverse)
        names = model.modules if model and rules is None else None
        given = Given(lora_alpha=lora_alpha, modules=model.modules if model else None)
        a, b = _read(first, given), _read(second, Given(lora_alpha=lora_alpha, modules=names))
        problems = [problem for problem in (*a.problems, *b.problems) if problem.severity == "error"]
        a = mapped(a, rules, model) if rules is not None else a
        found = compare.compared(a, b, rtol)
        problems += compare.unreal(found)
        shown = (str(first), str(second)) if first.name == second.name else (first.name, second.name)
        elsewhere = moved(a, b, found)
        text = [compare.rendered(found, shown), *worded(elsewhere, shown), *inspect.told(problems)]
        data = {**found.as_dict(), "moved": elsewhere, "problems": [p.as_dict() for p in problems]}
        emit(data, "\n".join(text), json_out)
    raise typer.Exit(int(found.verdict != "same" or bool(problems)))


@app.command(
    "convert", epilog=examples(f"parity lora convert my_lora.safetensors --to {writers()[-1]} -o my_lora"),
    short_help="Convert a file to another dialect or model.",
)  # fmt: skip
def convert_file(
    file: FileArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"One of {', '.join(writers())}.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="The file to write, or a folder for it.")],
    key_map: MapOption = None,
    reverse: ReverseOption = False,
    base: BaseOption = None,
    to_base: Annotated[Path | None, typer.Option(metavar="MODEL", help="The model the result is for.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Recompress to at most this rank, with loss; the error is stated.")
    ] = None,
    lora_alpha: AlphaOption = None,
    adapter: AdapterOption = None,
    prefix: PrefixOption = None,
    json_out: JsonOption = False,
) -> None:
    """Convert a file to another dialect, and through a key map to another model's names, fused or split.

    The result is read back and compared with the original before it gets its name.
    """
    with reported(json_out):
        dialect, model, target_model = writer(to), _base(base), _base(to_base)
        rules = key_map_named(key_map, reverse, (target_model.shapes, model.shapes) if model and target_model else None)
        lora = _read(file, Given(None, lora_alpha, adapter, prefix, model.modules if model else None))
        sound(lora)
        if rules is not None:
            lora = mapped(lora, rules, model)
        elif model is not None:
            fits(lora, model)
        if target_model is not None:
            fits(lora, target_model)
        lora, lost = recompress(lora, rank) if rank is not None else (lora, {})
        thin(lora)
        whole(lora, dialect.name, target_model or (model if rules is None else None))
        data = _written(lora, dialect, out, file)
        data |= {"recompression": lost, "problems": [problem.as_dict() for problem in lora.problems]}
        emit(data, _convert_text(data, list(lora.problems)), json_out)


def _written(lora: LoadedLora, dialect: Dialect, out: Path, file: Path) -> dict[str, object]:
    """Write, read back and compare, then name the file."""
    place = out if out.suffix else out / "adapter_model.safetensors"
    if place.exists() and file.exists() and place.samefile(file):
        raise UsageError(f"{out} is the file to convert\nname another with -o")
    assert dialect.write is not None
    written = dialect.write(lora)
    distances: list[float] = []

    def prove(path: Path) -> None:
        def read_back() -> LoadedLora:
            found = _opened(path, Given(modules=list(lora.targets)))
            if dialect_of(found).name != dialect.name:
                raise LoraFileError("not_proved", f"what was written reads as {dialect_of(found).name}")
            return read_lora(found)

        distances.extend(row.rel_l2 for row in proved(lora, read_back).rows.values())

    places = write_lora(out, written.tensors, written.header, written.sidecar, prove)
    return {
        "format": dialect.name, "files": [str(path) for path in places], "targets": len(lora.targets),
        "rel_l2": max(distances, default=0.0),
    }  # fmt: skip


def _read(file: Path, given: Given) -> LoadedLora:
    return read_lora(_opened(file, given))


def _opened(file: Path, given: Given) -> LoraFile:
    opened = open_lora(file)
    return LoraFile(opened.source, opened.header, opened.sidecar, given)


def _base(path: Path | None) -> Base | None:
    return None if path is None else Base.from_keys(open_base(path))


def _checked(lora: LoadedLora | None, found: Fit, problems: list[Problem]) -> dict[str, object]:
    return {
        "format": lora.format if lora else None, "matched": found.matched, "missing_modules": found.missing,
        "shape_mismatches": {m: {"lora": list(a), "model": list(b)} for m, (a, b) in found.wrong.items()},
        "unexpected_keys": lora.keys_that_are("unexpected") if lora else [],
        "problems": [problem.as_dict() for problem in problems],
    }  # fmt: skip


def _check_text(lora: LoadedLora | None, found: Fit, problems: list[Problem]) -> str:
    head = [f"{lora.format}: {len(found.matched)} of {len(lora.targets)} modules fit the model"] if lora else []
    return "\n".join([*head, *inspect.told(problems)])


def _convert_text(data: dict[str, object], problems: list[Problem]) -> str:
    files = data["files"]
    assert isinstance(files, list)
    lines = [f"wrote {some(files)}: {data['targets']} targets"]
    lines.append(f"read back and compared: largest relative distance {data['rel_l2']:.1e}")
    lost = data["recompression"]
    if isinstance(lost, dict) and lost:
        worst = max(lost, key=lambda name: float(lost[name]))
        lines.append(f"recompressed with loss: {len(lost)} targets, up to {lost[worst]:.3%} of it, in {worst}")
    return "\n".join([*lines, *inspect.told(problems)])


app.command("converter", epilog=EPILOG, short_help="Write a converter that stands alone.")(converter)

__all__ = ["app"]
