"""The reference's passes are computed once: what changes them has a key of its own, two runs wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import nn

from fixtures.residency import Ways, differences
from fixtures.tiny import edited, output_of, tiny_inputs, tiny_pair
from parity.cached import cache_key, cached_recording
from parity.errors import RecordError
from parity.io.atomic import locked
from parity.io.cache import Use, entries, shrink
from parity.io.recording import RecordingFolder
from parity.lora.adapter import LoraAdapter
from parity.pair import Build, ModelPair
from parity.recorder import Plan, ReferenceAtWork
from parity.run import Options


@pytest.fixture
def counted(tmp_path: Path, one_thread: None) -> tuple[Ways, list[int]]:
    """Return a small pair, and a list that grows with each forward of its reference."""
    calls: list[int] = []

    def count(y: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return y

    pair = edited(tiny_pair(depth=1), output_of("x_in", count), "reference")
    return Ways(pair, tmp_path, options=Options(twins=1)), calls


def test_the_second_run_calls_no_reference(counted: tuple[Ways, list[int]]) -> None:
    ways, calls = counted
    first = ways.one()
    assert calls
    calls.clear()
    assert differences(ways.one(), first) == []
    assert calls == []


def test_a_state_that_is_new_is_added(counted: tuple[Ways, list[int]]) -> None:
    ways, calls = counted
    replace(ways, states=[(False, "")]).one()
    once = len(calls)
    calls.clear()
    replace(ways, states=[(True, "")]).one()
    assert 0 < len(calls) <= once + 1 + 5, "the pass without is one more, and the layer is asked alone"
    calls.clear()
    ways.one()
    assert calls == []
    assert len(list((ways.folder / "cache" / "tiny").iterdir())) == 1


@pytest.mark.parametrize("file", ["lora_off-seed0/twin0/00000.safetensors", "lora_off-seed0/free/pass.json"])
def test_a_pass_that_was_lost_is_computed_again(counted: tuple[Ways, list[int]], file: str) -> None:
    ways, calls = counted
    first = ways.one()
    (folder,) = (ways.folder / "cache" / "tiny").iterdir()
    (folder / file).unlink()
    assert differences(ways.one(), first) == []
    calls.clear()
    ways.one()
    assert calls == []


def test_a_pass_that_was_edited_is_refused(counted: tuple[Ways, list[int]]) -> None:
    ways, _ = counted
    ways.one()
    file = next((ways.folder / "cache").rglob("lora_off-seed0/lockstep/00000.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(RecordError, match="edited or damaged"):
        ways.one()


def at_work(pair: ModelPair, build: Build, options: Options, **more: Any) -> ReferenceAtWork:
    return ReferenceAtWork(Plan(pair, build, options, ((False, ""),), more.get("dtypes", {})))


def key(pair: ModelPair, build: Build | None = None, options: Options | None = None, **more: Any) -> str:
    opened = at_work(pair, build or Build(), options or Options(), **more)
    try:
        return cache_key(opened)
    finally:
        opened.close()


def weight_changed(model: nn.Module) -> None:
    model.get_parameter("out.bias").data[0] += 1.0


def louder(build: Build, model: nn.Module) -> LoraAdapter:
    pair = tiny_pair()
    assert pair.lora is not None
    held = pair.lora(build, model)
    return LoraAdapter(held.name, {k: replace(t, scaling=t.scaling * 2) for k, t in held.targets.items()})


def other_inputs(build: Build, seed: int) -> dict[str, Any]:
    return tiny_inputs(build, seed + 1)


def called_by(call: Callable[..., Any]) -> ModelPair:
    pair = tiny_pair()
    return replace(pair, reference=replace(pair.reference, call=call))


OTHERS: dict[str, Callable[[], str]] = {
    "weights": lambda: key(edited(tiny_pair(), weight_changed, "reference")),
    "seed_of_weights": lambda: key(tiny_pair(), Build(seed=1)),
    "dtype": lambda: key(tiny_pair(), Build(dtype=torch.float32)),
    "size": lambda: key(tiny_pair(), Build(size="small")),
    "inputs": lambda: key(tiny_pair(inputs=other_inputs)),
    "variants": lambda: key(tiny_pair(variants={"other": other_inputs})),
    "lora": lambda: key(tiny_pair(lora=louder)),
    "no_lora": lambda: key(tiny_pair(lora=None)),
    "twins": lambda: key(tiny_pair(), options=Options(twins=1)),
    "shadow_dtype": lambda: key(tiny_pair(), options=Options(shadow_dtype=torch.float32)),
    "taps": lambda: key(tiny_pair(taps=lambda build: tiny_pair().taps(build)[1:])),
    "code_that_calls": lambda: key(called_by(lambda model, inputs: model(**inputs))),
    "native_dtypes": lambda: key(tiny_pair(), dtypes={"sinusoid": torch.bfloat16}),
}


@pytest.mark.parametrize("changed", OTHERS)
def test_what_changes_a_pass_changes_the_key(changed: str, one_thread: None) -> None:
    assert OTHERS[changed]() != key(tiny_pair())


@pytest.fixture
def switched() -> Iterator[None]:
    """Change a switch of torch that changes what kernels compute."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_what_changes_no_pass_keeps_the_key(one_thread: None) -> None:
    wanted = key(tiny_pair())
    assert key(tiny_pair()) == wanted
    assert key(tiny_pair(), options=Options(seed=5, draws=3, singles=0)) == wanted
    assert key(edited(tiny_pair(), weight_changed)) == wanted, "the native's weights are not the reference's"


def test_a_switch_of_torch_changes_the_key(one_thread: None, switched: None) -> None:
    medium = key(tiny_pair())
    torch.set_float32_matmul_precision("highest")
    assert key(tiny_pair()) != medium


def test_the_number_of_threads_changes_the_key(one_thread: None) -> None:
    one = key(tiny_pair())
    torch.set_num_threads(2)
    assert key(tiny_pair()) != one


def test_a_second_run_waits_for_the_first(tmp_path: Path, one_thread: None) -> None:
    opened = at_work(tiny_pair(depth=1, lora=None), Build(), Options(twins=1))
    held, told, said = Event(), Event(), []

    def hold() -> None:
        with locked(tmp_path / "tiny" / cache_key(opened) / "manifest.json"):
            held.set()
            told.wait(60)

    def tell(text: str) -> None:
        said.append(text)
        told.set()

    holder = Thread(target=hold)
    holder.start()
    assert held.wait(60)
    folder = cached_recording(opened, tmp_path, tell).folder
    holder.join()
    opened.close()
    assert said[0].startswith("waiting for process")
    assert set(RecordingFolder(folder).manifest()["draws"]) == {"lora_off-seed0"}


def test_a_reader_is_not_disturbed_by_draws_that_are_added(tmp_path: Path, one_thread: None) -> None:
    opened = at_work(tiny_pair(depth=1, lora=None), Build(), Options(twins=1))
    folder = RecordingFolder(cached_recording(opened, tmp_path, lambda text: None).folder)
    seen: list[bool] = []

    def look(text: str) -> None:
        seen.append(set(folder.manifest()["draws"]) == {"lora_off-seed0"})

    later = replace(opened.plan, options=Options(twins=1, seed=1))
    opened.plan = later
    cached_recording(opened, tmp_path, look)
    opened.close()
    assert seen
    assert all(seen)
    assert set(folder.manifest()["draws"]) == {"lora_off-seed0", "lora_off-seed1"}


# --- its size ---------------------------------------------------------------------------------------------------------

IN_USE = """
import sys, time
from pathlib import Path
from parity.io.cache import Use
use = Use(Path(sys.argv[1]))
print("used", flush=True)
time.sleep(60)
"""


def recorded(cache: Path, name: str, used: int, size: int = 1000) -> Path:
    """Put an entry into a cache: as much of a recording as its removal looks at."""
    folder = cache / "some_pair" / name
    Use(folder).leave()
    (folder / "lora_off-seed0").mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "lora_off-seed0" / "00000.safetensors").write_bytes(bytes(size))
    os.utime(folder / ".in_use", (used, used))
    return folder


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    first, second, third = (recorded(tmp_path, name, used) for name, used in (("b", 10), ("c", 20), ("a", 30)))
    assert [entry.folder for entry in entries(tmp_path)] == [first, second, third]
    assert shrink(tmp_path, 3 * 1100) == []
    assert shrink(tmp_path, 2 * 1100) == [first]
    assert not first.exists()
    Use(second).leave()
    assert shrink(tmp_path, 1100) == [third], "the other one was used since"
    assert shrink(tmp_path, 0) == [second]
    assert list((tmp_path / "some_pair").iterdir()) == []


def test_what_a_running_process_uses_stays(tmp_path: Path) -> None:
    folder, other = recorded(tmp_path, "a", 10), recorded(tmp_path, "b", 20)
    with subprocess.Popen([sys.executable, "-c", IN_USE, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"used\n"
        assert shrink(tmp_path, 0) == [other]
        process.kill()
    assert shrink(tmp_path, 0) == [folder], "a process that was killed uses nothing"


def test_folders_that_hold_no_recording_are_left_alone(tmp_path: Path) -> None:
    for path in (tmp_path / "some_pair" / "mine", tmp_path / "mine"):
        path.mkdir(parents=True)
        (path / "notes.txt").write_text("x")
    recorded(tmp_path, "a", 10)
    assert len(shrink(tmp_path, 0)) == 1
    assert sorted(path.name for path in tmp_path.rglob("notes.txt")) == ["notes.txt", "notes.txt"]


def test_a_removal_that_was_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "a", 10)
    folder.rename(folder.with_name(".a.removed"))
    assert shrink(tmp_path, 10**9) == []
    assert list((tmp_path / "some_pair").iterdir()) == []


def test_a_run_keeps_its_own_recording_and_removes_older_ones(counted: tuple[Ways, list[int]]) -> None:
    ways, _ = counted
    old = recorded(ways.folder / "cache", "old", 10)
    sources = {"one_resident": True, "cache": ways.folder / "cache", "cache_limit": 0}
    first = ways.judged(**sources)
    (kept,) = entries(ways.folder / "cache")
    assert (kept.folder.parent.name, old.exists()) == ("tiny", False)
    assert differences(ways.judged(**sources), first) == []
    assert shrink(ways.folder / "cache", 0) == [kept.folder], "no run uses it any more"
