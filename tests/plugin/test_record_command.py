"""`parity record`: resumed after a kill to the same bytes, refused with the field named, inputs from a pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fixtures.project import HEAD, Project
from fixtures.tiny import tiny_inputs
from parity.case import cases_of
from parity.cli import app
from parity.discover import discover
from parity.engine import Engine, Settings
from parity.errors import RecordError
from parity.io import passes
from parity.io.atomic import locked
from parity.io.passes import PassWriter
from parity.io.recording import RecordingFolder
from parity.references import ReferenceSources, recordings
from parity.run import Options

PAIR = "PAIR = tiny_pair('small', depth=1)"
DEADLY = """
import os, signal
from pathlib import Path
replace_file, renames = Path.replace, [0]
def counted(self, target):
    renames[0] += 1
    if str(renames[0]) == os.environ.get("KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace_file(self, target)
Path.replace = counted
"""
Record = Callable[..., Result]


@pytest.fixture
def record(project: Project, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Return a function that calls `parity record` in a project with the pair `small`."""
    monkeypatch.chdir(project.pytester.path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_pair(project, PAIR)

    def call(*words: str, pair: str = "small", out: str = "made") -> Result:
        fixed = ["--pairs", "pairs", "--device", "cpu", "-o", out]
        return CliRunner().invoke(app, ["record", pair, *fixed, *words])

    return call


def write_pair(project: Project, text: str, head: str = HEAD) -> None:
    """Write the pair file, and forget the one that was imported here."""
    project.pair("small", text, head)
    for name in [name for name in sys.modules if name == "pairs" or name.startswith(("pairs.", "parity_pair_"))]:
        del sys.modules[name]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def lines(result: Result) -> list[str]:
    return result.stderr.strip().splitlines()


def test_a_reference_is_recorded_here_and_judged_by_pytest(record: Record, project: Project) -> None:
    result = record("--twins", "1")
    assert result.exit_code == 0, result.output
    assert "recorded: made" in result.stdout
    assert any("MB to write" in line for line in lines(result))
    assert any("lora_on-seed0 lockstep" in line for line in lines(result))
    run = project.run("-q", "--parity-reference", "made", "--parity-twins=1")
    assert run.code == 0, run.text
    assert len(run.cases("passed")) == 20
    (state, _) = run.record["pairs"]
    assert state["reference_from"]["kept"] == "recording"
    assert state["reference_from"]["torch"] == torch.__version__
    assert state["reference_from"]["bytes"] > 1000
    assert "reference trace from recording (" in run.text


def test_where_the_reference_is_from_is_in_the_record(record: Record, project: Project) -> None:
    run = project.run("-q", "-k", "patch_embed", "--parity-residency=one")
    assert {state["reference_from"]["kept"] for state in run.record["pairs"]} == {"cache"}
    assert "reference trace from cache (" in run.text
    run = project.run("-q", "-k", "patch_embed")
    assert [state["reference_from"] for state in run.record["pairs"]] == [{"kept": "memory"}] * 2
    assert "reference trace" not in run.text


def test_both_sides_recorded_are_compared_without_a_model(record: Record) -> None:
    record("--lora", "off")
    assert record("--side", "native", "--reference", "made", "--lora", "off", out="native").exit_code == 0
    assert compared("made", "native")["outcome"] == "passed"


def compared(reference: str, native: str, **options: Any) -> dict[str, Any]:
    pair = discover([Path("pairs")])["small"]
    sources = ReferenceSources(folders=recordings([Path(reference)]), natives=recordings([Path(native)]))
    settings = Settings(options=Options(**options), sources=sources)
    case = next(iter(cases_of(pair, settings.build(pair))))
    return Engine({"small": pair}, settings).case_record(case)


def test_progress_and_words_give_way_to_json(record: Record) -> None:
    result = record("--lora", "off", "--json")
    assert json.loads(result.stdout) == {"recording": "made"}
    assert result.stderr == ""
    again = record("--lora", "off", "--json", "--resume")
    assert json.loads(again.stdout) == {"recording": "made"}


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [(3, 40), (17,)])
def test_a_killed_recording_is_resumed_to_the_same_bytes(
    record: Record, project: Project, moments: tuple[int, ...]
) -> None:
    write_pair(project, PAIR, HEAD + DEADLY)
    assert record(out="whole").exit_code == 0
    for moment in moments:
        command = [sys.executable, "-m", "parity", "record", "small", "--pairs", "pairs", "--device", "cpu"]
        environment = {**os.environ, "KILL_AT": str(moment)}
        done = subprocess.run([*command, "-o", "made", "--resume"], env=environment, capture_output=True, check=False)
        assert done.returncode == -9
        assert list(Path("made").rglob(".*.tmp")), "the kill hit no write"
        with pytest.raises(RecordError, match="--resume"):
            RecordingFolder("made").manifest()
    assert record("--resume").exit_code == 0
    assert files_of(Path("made")) == files_of(Path("whole"))


def test_whole_passes_are_not_computed_again(record: Record, project: Project) -> None:
    note = "edit = output_of('x_in', lambda y: (note('forward'), y)[1])\n"
    write_pair(project, f"{note}PAIR = edited(tiny_pair('small', depth=1), edit, side='reference')")
    record("--lora", "off")
    whole = len(project.noted)
    (Path("made") / "lora_off-seed0" / "twin1" / "pass.json").unlink()
    (Path("made") / "manifest.json").rename(Path("made") / "begun.json")
    before = files_of(Path("made"))
    assert record("--lora", "off", "--resume").exit_code == 0
    assert len(project.noted) - whole == 4, "learning, sizes, the twin that was missing, the observer"
    found = files_of(Path("made"))
    assert {n for n in found if found[n] != before.get(n)} == {"manifest.json", "lora_off-seed0/twin1/pass.json"}


def test_a_damaged_pass_is_recorded_again(record: Record) -> None:
    record("--lora", "off")
    whole = files_of(Path("made"))
    shard = Path("made") / "lora_off-seed0" / "lockstep" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    (Path("made") / "manifest.json").rename(Path("made") / "begun.json")
    assert record("--lora", "off", "--resume").exit_code == 0
    assert files_of(Path("made")) == whole


def test_draws_are_added_to_a_complete_recording(record: Record) -> None:
    record("--lora", "off")
    assert record("--lora", "on", "--resume").exit_code == 0
    assert record("--lora", "off", "--seed", "4", "--resume").exit_code == 0
    draws = RecordingFolder("made").manifest()["draws"]
    assert set(draws) == {"lora_off-seed0", "lora_on-seed0", "lora_off-seed4"}


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--dtype", "float32"), "dtype"), (("--size", "small"), "size"), (("--twins", "2"), "twins"),
        (("--native-dtype", "sinusoid=bfloat16"), "native_dtypes"),
    ],
)  # fmt: skip
def test_another_recording_is_not_gone_on_with(record: Record, words: tuple[str, ...], field: str) -> None:
    record("--lora", "off")
    before = files_of(Path("made"))
    result = record("--lora", "off", "--resume", *words)
    assert result.exit_code == 2
    assert f"made was recorded with another {field}\n" in result.stderr
    assert len([line for line in lines(result) if not line.startswith("  ")]) <= 5
    assert files_of(Path("made")) == before


CHANGED = {
    "weights": "PAIR = edited(tiny_pair('small', depth=1), lambda m: m.x_in.weight.data.mul_(1.1), side='reference')",
    "taps": "p = tiny_pair('small', depth=1)\nPAIR = replace(p, taps=lambda build: p.taps(build)[1:])",
    "lora": (
        "from parity.lora.adapter import LoraAdapter\np = tiny_pair('small', depth=1)\n"
        "def lora(build, model):\n"
        "    held = p.lora(build, model)\n"
        "    return LoraAdapter(held.name, {k: replace(t, scaling=2.0) for k, t in held.targets.items()})\n"
        "PAIR = replace(p, lora=lora)"
    ),
    "input 'latents'": (
        "PAIR = tiny_pair('small', depth=1, inputs=lambda build, seed: "
        "{**tiny_inputs(build, seed), 'latents': tiny_inputs(build, seed + 1)['latents']})"
    ),
    "input 'extra'": (
        "PAIR = tiny_pair('small', depth=1, inputs=lambda build, seed: {**tiny_inputs(build, seed), 'extra': 3})"
    ),
}


@pytest.mark.parametrize("field", CHANGED)
def test_a_changed_pair_is_not_gone_on_with(record: Record, project: Project, field: str) -> None:
    record()
    (Path("made") / "manifest.json").rename(Path("made") / "begun.json")
    write_pair(project, CHANGED[field])
    result = record("--resume")
    assert result.exit_code == 2
    assert field in result.stderr


@pytest.mark.parametrize("field", [name for name in CHANGED if name not in ("weights", "lora")])
def test_a_changed_pair_is_not_judged_against_its_old_recording(record: Record, project: Project, field: str) -> None:
    record()
    write_pair(project, CHANGED[field])
    run = project.run("-q", "-k", "sinusoid", "--parity-reference", "made")
    assert run.code == 1
    assert field in run.text
    assert run.cases("passed") == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--parity-dtype=float32",), "was recorded with another dtype"),
        (("--parity-size=small",), "was recorded with another size"),
        (("--parity-twins=2",), "was recorded with another twins"),
        (("--parity-shadow-dtype=float32",), "was recorded with another shadow_dtype"),
        (("--parity-seed=3",), "has no draw 'lora_off-seed3', it has lora_off-seed0"),
        (("--parity-draws=2",), "has no draw 'lora_off-seed1'"),
    ],
)
def test_what_was_not_recorded_is_not_judged(
    record: Record, project: Project, given: tuple[str, ...], said: str
) -> None:
    record("--lora", "off")
    run = project.run("-q", "-k", "patch_embed and lora_off", "--parity-reference", "made", *given)
    text = " ".join(run.text.split())  # lines are broken at 80 columns
    assert run.code == 1
    assert said in text
    assert "recorded: 3" in text or "twins" not in said
    assert len(run.message("small-patch_embed-lora_off")) <= 5


def test_the_recording_of_another_reference_is_not_compared(record: Record) -> None:
    record("--lora", "off")
    record("--lora", "off", "--native-dtype", "sinusoid=bfloat16", out="other")
    record("--side", "native", "--reference", "made", "--lora", "off", out="native")
    with pytest.raises(RecordError, match="native was recorded with another reference"):
        compared("other", "native")
    with pytest.raises(RecordError, match="made was recorded with another side"):
        compared("made", "made")
    with pytest.raises(RecordError, match="has no draw 'lora_off-seed1'"):
        compared("made", "native", seed=1)


def test_a_native_recorded_with_other_inputs_is_neither_compared_nor_gone_on_with(
    record: Record, project: Project
) -> None:
    record("--lora", "off")
    record("--side", "native", "--reference", "made", "--lora", "off", out="native")
    write_pair(project, CHANGED["input 'latents'"])
    record("--lora", "off", out="later")
    with pytest.raises(RecordError, match="native: input 'latents' of lora_off-seed0 differs"):
        compared("later", "native")
    result = record("--side", "native", "--reference", "later", "--lora", "off", "--resume", out="native")
    assert result.exit_code == 2
    assert "input 'latents' of lora_off-seed0 differs" in result.stderr


def test_states_are_added_to_a_native(record: Record) -> None:
    record()
    for state in ("off", "on"):
        record("--side", "native", "--reference", "made", "--lora", state, "--resume", out="native")
    assert set(RecordingFolder("native").manifest()["draws"]) == {"lora_off-seed0", "lora_on-seed0"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--side", "middle"), "unknown side 'middle'"),
        (("--side", "native"), "name its recording by --reference DIR"),
        (("--side", "native", "--reference", "nowhere"), "cannot read nowhere/manifest.json"),
        (("--native-dtype", "sinusoit=bfloat16"), "did you mean 'sinusoid'?"),
        (("--native-dtype", "sinusoid=bfloat61"), "did you mean 'bfloat16'?"),
        (("--from-call", "nowhere:run"), "--from-call 'nowhere:run' names no function"),
    ],
)
def test_usage_errors(record: Record, words: tuple[str, ...], said: str) -> None:
    result = record(*words)
    assert (result.exit_code, Path("made").exists()) == (2, False)
    assert said in result.stderr
    assert len(lines(result)) <= 5


def test_a_recording_is_not_written_over(record: Record) -> None:
    record("--lora", "off")
    result = record("--lora", "off")
    assert result.exit_code == 2
    assert "made holds a recording\ngo on with it by --resume" in result.stderr


def test_two_recordings_of_one_pair_are_refused(record: Record, project: Project) -> None:
    record("--lora", "off")
    record("--lora", "off", out="twin")
    run = project.run("-q", "--parity-reference", "made", "--parity-reference", "twin")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert "made and twin are both recordings of 'small'" in run.text


def test_a_second_run_on_one_folder_is_told(record: Record) -> None:
    Path("made").mkdir()
    with locked("made/manifest.json"):
        result = record()
    assert result.exit_code == 2
    assert f"is being written by process {os.getpid()}" in result.stderr


# --- disk -------------------------------------------------------------------------------------------------------------


def test_a_small_disk_is_told_before_it_starts(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    result = record()
    assert result.exit_code == 2
    assert "the disk has 0.0 GB left" in result.stderr
    assert not list(Path("made").rglob("*.safetensors"))


def test_a_full_disk_is_not_taken_for_the_models_fault(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    record(out="whole")
    write, left = os.replace, [12]

    def full(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        result = record()
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert "--resume" in result.stderr
    assert not list(Path("made").rglob(".*.tmp"))
    assert record("--resume").exit_code == 0
    assert files_of(Path("made")) == files_of(Path("whole"))


def test_the_estimate_is_what_is_written(record: Record) -> None:
    result = record("--size", "small")
    said = next(line for line in lines(result) if "MB to write" in line)
    folder = RecordingFolder("made")
    assert float(said.split()[1]) == pytest.approx(folder.bytes_of() / 1e6, abs=0.6)


def test_memory_holds_at_most_a_block(record: Record, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(project, "PAIR = tiny_pair('small', depth=4, lora=None)")
    held: list[int] = []

    class Watched(PassWriter):
        def put(self, name: str, low: torch.Tensor, high: torch.Tensor | None) -> None:
            super().put(name, low, high)
            held.append(self.held_bytes)

    record(out="unwatched")
    whole = max(
        sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in Path("unwatched").glob("*/lockstep")
    )
    monkeypatch.setattr("parity.io.recording.PassWriter", Watched)
    assert passes.PassWriter is not Watched
    record()
    assert held
    assert max(held) < whole / 2


# --- inputs of a real pipeline ----------------------------------------------------------------------------------------


FROM_CALL = """
p = tiny_pair('small', depth=1)
def inputs(call):
    return {name: call[name] for name in ("latents", "t", "text")}
PAIR = replace(p, reference=replace(p.reference, from_call=inputs))
"""
PIPELINE = """
import torch
from fixtures.tiny import Reference, tiny_inputs
from parity.pair import Build
given = tiny_inputs(Build(), 77, size=(1, 4, 4))
def model():
    return Reference(1, 16).to(torch.bfloat16)
def by_keyword():
    model()(t=given["t"], text=given["text"], latents=given["latents"])
def by_position():
    model()(given["latents"], given["t"], given["text"])
def swallowing():
    try:
        by_position()
    except Exception:
        pass
    raise AssertionError("the pipeline went on")
def never_calls():
    model()
def raises():
    raise ValueError("no such checkpoint")
def wrong():
    model()(given["latents"])
"""


@pytest.fixture
def pipeline(record: Record, project: Project) -> Record:
    """Return `parity record --from-call` of a pipeline's function."""
    write_pair(project, FROM_CALL)
    # A module name of its own per test: the command imports it into this process.
    name = f"pipeline_{project.pytester.path.name}"
    Path(f"{name}.py").write_text(PIPELINE)
    return lambda function: record("--lora", "off", "--from-call", f"{name}:{function}")


@pytest.mark.parametrize("function", ["by_keyword", "by_position", "swallowing"])
def test_what_enters_a_pipelines_forward_is_recorded(pipeline: Record, project: Project, function: str) -> None:
    result = pipeline(function)
    assert result.exit_code == 0, result.output
    found: Mapping[str, Any] = RecordingFolder("made").inputs("lora_off-seed0")
    from parity.pair import Build

    wanted = tiny_inputs(Build(), 77, size=(1, 4, 4))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    run = project.run("-q", "-k", "lora_off", "--parity-reference", "made")
    assert run.code == 0, run.text
    assert run.record["pairs"][0]["tokens"] == 16


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("never_calls", "the pipeline ended without calling a Reference"),
        ("raises", "the pipeline raised before it called a Reference: no such checkpoint"),
        ("wrong", "the pipeline raised before it called a Reference: missing a required argument: 't'"),
    ],
)
def test_a_pipeline_that_gives_no_inputs_is_told(pipeline: Record, function: str, said: str) -> None:
    result = pipeline(function)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert not Path("made").exists()


def test_a_reference_without_from_call_says_what_it_needs(pipeline: Record, project: Project) -> None:
    write_pair(project, PAIR)
    result = pipeline("by_keyword")
    assert result.exit_code == 2
    assert "has no `from_call`" in result.stderr


# --- the base install -------------------------------------------------------------------------------------------------


BLOCKED = """
import importlib.util, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytest", "_pytest", "hypothesis", "jinja2", "diffusers", "plotly", "peft"):
            return importlib.util.spec_from_loader(name, self)  # torch looks for some of them, and imports none
    def create_module(self, spec):
        raise ImportError(f"{spec.name} is not here")
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Blocked())
import fixtures.pairs.longcat
from parity.cli import main
sys.argv = ["parity", "record", "small", "--pairs", "pairs", "--device", "cpu", "-o", "made", "--lora", "off"]
try:
    main()
finally:
    print("imported:", [name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_a_reference_is_recorded_by_the_base_install(record: Record) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "recorded: made" in done.stdout
    assert done.stdout.endswith("imported: []\n"), "torch's compiler costs every run a second"
    record("--lora", "off", out="here")
    assert files_of(Path("made")) == files_of(Path("here"))


