"""Recordings: every value comes back as it was, and what is broken or foreign is named, never run, never followed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.errors import RecordError
from parity.execution.decisions import Decisions
from parity.execution.trace import TapValue, Trace
from parity.io import shards
from parity.io.atomic import locked
from parity.io.passes import PASS, PassWriter, StoredPass, is_complete, write_pass
from parity.io.recording import RECORDING, TENSORS, RecordingFolder
from parity.io.records import read_record, write_record
from parity.io.shards import ShardReader, ShardWriter
from parity.io.tree import digests_of, printable

BITS = torch.arange(24, dtype=torch.uint8)
KINDS: dict[str, Tensor] = {
    **{str(d).removeprefix("torch."): (BITS.to(torch.float32) / 7 - 1).to(d).reshape(2, 3, 4)
       for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)},
    **{str(d).removeprefix("torch."): BITS.clone().view(d) for d in (torch.float8_e4m3fn, torch.float8_e5m2)},
    **{str(d).removeprefix("torch."): BITS.clone().view(d)
       for d in (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.uint16, torch.uint32, torch.uint64)},
    **{str(d).removeprefix("torch."): BITS.to(d) for d in (torch.int64, torch.int32, torch.int16, torch.int8)},
    "uint8": BITS, "bool": BITS % 3 == 0,
    "complex64": torch.complex(BITS.float(), -BITS.float()), "complex128": torch.complex(BITS.double(), BITS.double()),
    "conjugated": torch.complex(BITS.float(), -BITS.float()).conj(),
    "negated": torch.complex(BITS.float(), BITS.float()).conj().imag,
    "no_dims": torch.tensor(1.5, dtype=torch.bfloat16), "no_dims_int64": torch.tensor(-(2**62)),
    "empty": torch.empty(0, 3), "empty_complex": torch.empty(2, 0, dtype=torch.complex64),
    "strided": torch.arange(12.0).reshape(3, 4).T[1:], "expanded": torch.tensor([1.0]).expand(4, 5),
    "specials": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 5e-324], dtype=torch.float64),
}  # fmt: skip


def bits_of(value: Tensor) -> bytes:
    plain = value.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(plain.view(torch.uint8).numpy()) if plain.numel() else b""


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add(torch.ones(3, dtype=torch.int8))  # so that nothing is aligned by chance
    place = writer.add(KINDS[kind])
    writer.flush()
    found = ShardReader(tmp_path, writer.shards).get(json.loads(json.dumps(place)))
    assert (found.dtype, found.shape) == (KINDS[kind].dtype, KINDS[kind].shape)
    assert bits_of(found) == bits_of(KINDS[kind])
    assert found.data_ptr() % 64 == 0, "a kernel may round otherwise where values are not aligned"


def test_shards_are_files_others_can_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    writer = ShardWriter(tmp_path)
    for value in (KINDS["bfloat16"], KINDS["bool"], KINDS["no_dims"]):
        writer.add(value)
    writer.flush()
    found = load_file(tmp_path / "00000.safetensors")
    assert torch.equal(found["t0"], KINDS["bfloat16"])
    assert torch.equal(found["t1"], KINDS["bool"])
    assert found["t2"].shape == ()
    (shard,) = writer.shards
    data = (tmp_path / "00000.safetensors").read_bytes()
    assert shard == {"file": "00000.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_value_no_file_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot keep a value of layout torch\.sparse_coo"):
        ShardWriter(tmp_path).add(torch.eye(3).to_sparse())


def test_a_full_shard_is_closed_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    writer = ShardWriter(tmp_path)
    places = [writer.add(torch.full((20,), float(k))) for k in range(5)]
    assert writer.held_bytes == 80
    writer.flush()
    assert (writer.held_bytes, [shard["bytes"] > 80 for shard in writer.shards]) == (0, [True] * 3)
    reader = ShardReader(tmp_path, writer.shards)
    assert [float(reader.get(place)[0]) for place in places] == [0, 1, 2, 3, 4]


# --- passes -----------------------------------------------------------------------------------------------------------


def a_trace() -> Trace:
    decisions = Decisions(count=3)
    decisions.made["block0.up", "topk", (2, 2)] = [torch.tensor([[1, 0], [3, 2]]), torch.tensor([[0, 1], [2, 3]])]
    decisions.flips["block0.up"] = 2
    decisions.unmatched["block1"] = 1
    low = torch.arange(12.0).reshape(4, 3).bfloat16()
    values = {"patch_embed": TapValue(low, low.double() + 1e-9, (4,)), "final_output": TapValue(low + 1, None, (4,))}
    return Trace(values, Counter({"op x": 2}), Counter({"sdpa": 1}), 7, decisions, {"": Counter({"mm bfloat16": 2})})


def test_a_pass_comes_back_with_all_it_showed(tmp_path: Path) -> None:
    write_pass(tmp_path, a_trace(), {"note": [1, None]})
    stored = StoredPass(tmp_path)
    found, wanted = stored.trace(), a_trace()
    assert stored.extra == {"note": [1, None]}
    assert list(found.values) == ["patch_embed", "final_output"]
    assert torch.equal(found.values["patch_embed"].low, wanted.values["patch_embed"].low)
    assert torch.equal(high_of(found), high_of(wanted))
    assert found.values["final_output"].high is None
    assert (found.events, found.kernels, found.ops, found.dtypes) == (
        wanted.events, wanted.kernels, wanted.ops, wanted.dtypes,
    )  # fmt: skip
    assert list(found.decisions.made) == list(wanted.decisions.made)
    for key, made in wanted.decisions.made.items():
        assert all(torch.equal(a, b) for a, b in zip(made, found.decisions.made[key], strict=True))
    assert (found.decisions.count, found.decisions.flips, found.decisions.unmatched) == (
        3, wanted.decisions.flips, wanted.decisions.unmatched,
    )  # fmt: skip


def high_of(trace: Trace) -> Tensor:
    high = trace.values["patch_embed"].high
    assert high is not None
    return high


def test_calls_are_concatenated_as_in_memory(tmp_path: Path) -> None:
    writer = PassWriter(tmp_path)
    for rows in (2, 3):
        writer.put("block0", torch.full((rows, 2), float(rows)), torch.full((rows, 2), rows + 0.5, dtype=torch.float64))
    for _ in range(2):
        writer.put("timestep", torch.tensor(4.0), None)
    writer.close(Trace(writer.values()))
    values = StoredPass(tmp_path).trace().values
    assert (values["block0"].parts, values["block0"].low[:, 0].tolist()) == ((2, 3), [2, 2, 3, 3, 3])
    assert (values["timestep"].parts, values["timestep"].low.tolist()) == ((1, 1), [4, 4])


def test_at_most_one_block_is_in_memory(tmp_path: Path) -> None:
    writer = PassWriter(tmp_path)
    held = []
    for name in ("patch_embed", *(f"block{b}.{part}" for b in range(5) for part in ("up", "down")), "final_output"):
        writer.put(name, torch.ones(100), torch.ones(100, dtype=torch.float64))
        held.append(writer.held_bytes // 1200)
    assert held == [1, *([1, 2] * 5), 1]


def test_twins_keep_shadows_only_which_stand_for_both(tmp_path: Path) -> None:
    writer = PassWriter(tmp_path, low=False)
    writer.put("block0", torch.ones(3), torch.full((3,), 2.0, dtype=torch.float64))
    writer.close(Trace(writer.values()))
    value = StoredPass(tmp_path).trace().values["block0"]
    assert value.low.tolist() == [2, 2, 2]
    assert value.high is not None


INPUTS: dict[str, Any] = {
    "latents": torch.randn(1, 2, 3).bfloat16(), "lengths": [3, 2], "scale": 0.1, "none": None, "name": "NaN",
    "nested": {"list": [torch.ones(2), (1, torch.zeros(1, dtype=torch.bool))], 7: {"deep": [[]]}},
    "dtype": torch.float16, "flag": True, "infinite": math.inf, "empty": {},
}  # fmt: skip


def test_inputs_come_back_as_they_were(tmp_path: Path) -> None:
    folder = RecordingFolder(tmp_path)
    folder.write_inputs("lora_off-seed0", INPUTS)
    found = folder.inputs("lora_off-seed0")
    assert list(found) == list(INPUTS)
    assert str(found) == str(INPUTS)
    assert isinstance(found["nested"]["list"][1], tuple)
    assert digests_of(found) == digests_of(INPUTS)


@pytest.mark.parametrize(
    ("value", "named"),
    [(object(), "object"), ([torch.Generator()], "Generator"), ({(1, 2): 3}, "tuple"), (b"x", "bytes")],
)
def test_inputs_no_recording_keeps_are_refused(value: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=named):
        RecordingFolder(tmp_path).write_inputs("lora_off-seed0", {"extra": value})


def test_a_digest_tells_values_dtypes_and_structure_apart() -> None:
    values = [1, 1.0, True, "1", [1], (1,), {"a": 1}, None, torch.tensor(1), torch.tensor(1.0), torch.tensor([1])]
    assert len({digests_of({"x": value})["x"] for value in values}) == len(values)


# --- what is broken ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RecordingFolder:
    """Return a recording of one pass."""
    made = RecordingFolder(tmp_path / "made")
    write_pass(made.below("lora_off-seed0", "free"), a_trace())
    made.write_inputs("lora_off-seed0", INPUTS)
    made.write_tensors("weights", {"a.weight": torch.ones(2), "<b>\x1b[31m": torch.zeros(1)})
    made.begin({"pair": "tiny"})
    made.finish({"identity": {"pair": "tiny"}, "about": {}, "has_tables": False, "made_with": {},
                 "draws": {"lora_off-seed0": {}}})  # fmt: skip
    return made


def everything(folder: RecordingFolder) -> None:
    """Read all of a recording."""
    folder.manifest()
    trace = folder.stored("lora_off-seed0", "free").trace()
    list(trace.values.values())
    folder.inputs("lora_off-seed0")
    list(folder.tensors("weights")[0].values())


FREE = "lora_off-seed0/free"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def linked(path: Path) -> None:
    elsewhere = path.parents[3] / f"copy-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("file", [f"{FREE}/00000.safetensors", "weights/00000.safetensors"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [(truncated, "truncated: "), (flipped, "edited or damaged"), (Path.unlink, "is missing"), (linked, "is a link")],
    ids=["truncated", "flipped", "missing", "linked"],
)
def test_a_harmed_shard_is_named(folder: RecordingFolder, file: str, harm: Callable[[Path], Any], said: str) -> None:
    if harm is linked and file.startswith("weights"):
        file = "lora_off-seed0/inputs/00000.safetensors"
    everything(folder)
    harm(folder.path / file)
    with pytest.raises(RecordError, match=said) as caught:
        everything(folder)
    assert file.rpartition("/")[2] in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("file", ["manifest.json", f"{FREE}/pass.json", "weights/tensors.json"])
@pytest.mark.parametrize("harm", [truncated, flipped, Path.unlink], ids=["truncated", "flipped", "missing"])
def test_harmed_json_is_named(folder: RecordingFolder, file: str, harm: Callable[[Path], Any]) -> None:
    harm(folder.path / file)
    with pytest.raises(RecordError) as caught:
        everything(folder)
    assert file.rpartition("/")[2] in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_harmed_pass_is_not_complete(folder: RecordingFolder) -> None:
    assert is_complete(folder.below("lora_off-seed0", "free"))
    flipped(folder.path / FREE / "00000.safetensors")
    assert not is_complete(folder.below("lora_off-seed0", "free"))


def test_an_older_or_newer_schema_is_named(folder: RecordingFolder) -> None:
    path = folder.path / "manifest.json"
    for version, said in ((0, "older schema version 0"), (9, "newer")):
        whole = json.loads(path.read_text())
        path.write_text(json.dumps({**whole, "schema_version": version}))
        with pytest.raises(RecordError, match=said):
            folder.manifest()


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder: RecordingFolder) -> None:
    (folder.path / "manifest.json").unlink()
    os.mkfifo(folder.path / "manifest.json")
    with pytest.raises(RecordError, match="no regular file"):
        folder.manifest()


def test_a_folder_that_leads_elsewhere_is_not_followed(folder: RecordingFolder, tmp_path: Path) -> None:
    (folder.path / "weights").rename(tmp_path / "outside")
    (folder.path / "weights").symlink_to(tmp_path / "outside")
    with pytest.raises(RecordError, match="leads out of the recording"):
        folder.tensors("weights")


@pytest.mark.parametrize("name", ["../made", "..", "/etc", "a/b", "lora_off\n", "", "LORA", "a\x1b[31m", ".hidden"])
def test_names_that_are_no_folder_of_ours_are_refused(folder: RecordingFolder, name: str) -> None:
    with pytest.raises(RecordError) as caught:
        folder.below(name)
    assert "\x1b" not in str(caught.value)
    (folder.path / "manifest.json").unlink()
    folder.finish({**MANIFEST, "draws": {name: {}}})
    with pytest.raises(RecordError):
        folder.manifest()


MANIFEST: dict[str, Any] = {
    "identity": {"pair": "tiny"}, "about": {}, "has_tables": False, "made_with": {}, "draws": {},
}  # fmt: skip


def edited_pass(folder: RecordingFolder, **changes: Any) -> Path:
    """Rewrite a pass with other content and a digest that fits: what a stranger could hand over."""
    path = folder.path / FREE / "pass.json"
    write_record(path, {**read_record(path, PASS), **changes}, PASS)
    return path


@pytest.mark.parametrize("file", ["../../weights/00000.safetensors", "/etc/passwd", "00000.safetensors\n", "x.py", 3])
def test_a_foreign_list_of_shards_leads_nowhere(folder: RecordingFolder, file: Any) -> None:
    held = read_record(folder.path / FREE / "pass.json", PASS)["shards"][0]
    edited_pass(folder, shards=[{**held, "file": file}])
    with pytest.raises(RecordError, match="none of this project's files"):
        folder.stored("lora_off-seed0", "free")


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": None}, {"shards": 3}, {"shards": ["x"]}, {"taps": None}, {"taps": ["other"]}, {"taps": [[1]]},
        {"calls": {"patch_embed": [{}], "final_output": [{}]}}, {"calls": []}, {"events": [1]}, {"events": {"x": "y"}},
        {"kernels": None}, {"ops": "many"}, {"ops": None}, {"dtypes": [3]}, {"decisions": None},
        {"decisions": {"made": [3]}}, {"decisions": {"made": [[["a", "b", 3], []]], "count": 0}},
        {"calls": {"patch_embed": [{"low": {"shard": 99, "name": "t0"}}], "final_output": []}},
        {"calls": {"patch_embed": [{"low": {"shard": -1, "name": "t0"}}], "final_output": []}},
        {"calls": {"patch_embed": [{"low": {"shard": 0, "name": "nothing"}}], "final_output": []}},
        {"calls": {"patch_embed": [{"low": {"shard": "0", "name": "t0"}}], "final_output": []}},
        {"calls": {"patch_embed": [{"low": {"shard": 0, "name": "t0", "dtype": "load"}}], "final_output": []}},
        {"calls": {"patch_embed": [{"low": {"shard": 0, "name": "t0", "dtype": "float64"}}], "final_output": []}},
        {"calls": {"patch_embed": [{"low": {"shard": 0, "name": "t0", "complex": True}}], "final_output": []}},
        {"calls": {"patch_embed": [{"low": "import os"}], "final_output": []}},
    ],
    ids=str,
)  # fmt: skip
def test_foreign_content_is_refused_in_words(folder: RecordingFolder, changes: dict[str, Any]) -> None:
    edited_pass(folder, **changes)
    with pytest.raises(RecordError) as caught:
        everything(folder)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("field", MANIFEST)
@pytest.mark.parametrize("value", [None, 3, [1], "x"])
def test_a_foreign_manifest_is_refused_in_words(folder: RecordingFolder, field: str, value: Any) -> None:
    if field == "has_tables" and value is not None:
        value = None
    folder.finish({name: held for name, held in {**MANIFEST, field: value}.items() if held is not None})
    with pytest.raises(RecordError):
        folder.manifest()


HEADERS: dict[str, bytes] = {
    "huge": (1 << 62).to_bytes(8, "little") + b"{}",
    "larger_than_the_file": (1 << 20).to_bytes(8, "little") + b"{}",
    "no_json": (4).to_bytes(8, "little") + b"\xff\xfe{}",
    "nested": (50_000).to_bytes(8, "little") + b"[" * 50_000,
    "too_short": b"\x01\x02",
    "offsets_outside": b"",
    "huge_shape": b"",
    "markup": b"",
}


def header_of(kind: str) -> bytes:
    table: dict[str, Any] = {
        "offsets_outside": {"t0": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**12]}},
        "huge_shape": {"t0": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}},
        "markup": {"<img onerror=x>": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    }
    if kind not in table:
        return HEADERS[kind]
    text = json.dumps(table[kind]).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


@pytest.mark.parametrize("kind", HEADERS)
def test_a_malformed_file_whose_checksum_fits_is_refused_quickly(folder: RecordingFolder, kind: str) -> None:
    data = header_of(kind)
    (folder.path / FREE / "00000.safetensors").write_bytes(data)
    shard = {"file": "00000.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edited_pass(folder, shards=[shard, shard, shard])
    started = time.perf_counter()
    with pytest.raises(RecordError) as caught:
        everything(folder)
    assert time.perf_counter() - started < 20, "the header was believed"
    assert len(str(caught.value).splitlines()) <= 5


def test_foreign_inputs_are_refused_in_words(folder: RecordingFolder) -> None:
    path = folder.path / "lora_off-seed0" / "inputs" / "tensors.json"
    held = read_record(path, TENSORS)
    trees: list[Any] = [{"dtype": "load"}, {"tensor": "nothing"}, {}, 3, {"mapping": [1]}, {"a": 1, "b": 2}]
    for tree in trees:
        write_record(path, {**held, "note": {"x": tree}}, TENSORS)
        with pytest.raises(RecordError):
            folder.inputs("lora_off-seed0")


def test_nothing_unpickles() -> None:
    """Safetensors and JSON are all that is read; a pickle in a shard's place is no safetensors file."""
    folder = Path(shards.__file__).parent
    read = "".join((folder / f"{n}.py").read_text(encoding="utf-8") for n in ("shards", "passes", "recording", "tree"))
    assert not [word for word in ("pickle", "torch.load", "eval(", "exec(") if word in read]


def test_control_characters_of_a_stranger_are_made_visible() -> None:
    held = {"name\x1b[2J": ["a\nb", 3, {"x": "µ<b>"}]}
    assert printable(held) == {"name\\x1b[2J": ["a\\nb", 3, {"x": "µ<b>"}]}


# --- one writer -------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_and_a_patient_one_waits(tmp_path: Path) -> None:
    folder, told = RecordingFolder(tmp_path / "r"), []
    child = os.fork()
    if not child:
        with folder.writing():
            (tmp_path / "held").touch()
            while not (tmp_path / "seen").exists():
                time.sleep(0.01)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(RecordError, match=f"written by process {child}"), folder.writing():
        pytest.fail("entered")

    def waiting(text: str) -> None:
        told.append(text)
        (tmp_path / "seen").touch()

    with folder.writing(waiting):
        assert (tmp_path / "seen").exists()
    os.waitpid(child, 0)
    assert len(told) == 1
    assert told[0].startswith(f"waiting for process {child}")


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    folder = RecordingFolder(tmp_path)
    half = tmp_path / "lora_off-seed0" / ".00000.safetensors.77.abcd.tmp"
    half.parent.mkdir()
    half.touch()
    with folder.writing(), locked(tmp_path / "other.json"):
        pass
    assert not half.exists()


def test_a_recording_that_was_not_finished_says_how_to_go_on(tmp_path: Path) -> None:
    folder = RecordingFolder(tmp_path)
    folder.begin({"pair": "tiny"})
    with pytest.raises(RecordError, match="--resume"):
        folder.manifest()
    assert folder.begun() == {"pair": "tiny"}
    assert RECORDING.version == 1
