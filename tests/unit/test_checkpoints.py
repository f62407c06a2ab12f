"""The lazy reader: every form of a checkpoint, and every way a file can lie."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor
from typer.testing import CliRunner

from parity.cli import app
from parity.errors import CheckpointError, UsageError
from parity.io.checkpoints import Checkpoint, open_checkpoint
from parity.io.checkpoints.header import BITS
from parity.io.checkpoints.stored import TORCH_DTYPES


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "blocks.0.q.weight": torch.randn(6, 4, generator=generator).bfloat16(),
        "blocks.0.q.bias": torch.randn(6, generator=generator),
        "patch": torch.randn(2, 3, 1, 2, generator=generator),
        "scale": torch.tensor(2.0),
        "none": torch.empty(0, 4),
    }


def assert_holds(checkpoint: Checkpoint, wanted: dict[str, Tensor]) -> None:
    assert set(checkpoint.keys()) == set(wanted)
    for key, value in wanted.items():
        assert torch.equal(checkpoint.get_tensor(key), value), key
        assert (checkpoint.info(key).shape, checkpoint.info(key).dtype) == (value.shape, value.dtype)


def test_a_safetensors_file(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    with open_checkpoint(str(tmp_path / "a.safetensors")) as checkpoint:
        assert_holds(checkpoint, state())
        assert torch.equal(checkpoint.get_slice("blocks.0.q.weight", 2, 5), state()["blocks.0.q.weight"][2:5])
        buffer = torch.empty(100, dtype=torch.uint8)
        part = checkpoint.get_elements("patch", 3, 9, buffer)
        assert torch.equal(part, state()["patch"].flatten()[3:9])
        assert part.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        with pytest.raises(UsageError, match=r"rows 5 to 9 of 'blocks.0.q.weight'"):
            checkpoint.get_slice("blocks.0.q.weight", 5, 9)
        with pytest.raises(UsageError, match="did you mean 'patch'"):
            checkpoint.get_tensor("pach")


@pytest.mark.parametrize("name", [name for name in BITS if BITS[name] >= 8])
def test_every_dtype_as_the_library_reads_it(name: str, tmp_path: Path) -> None:
    count = BITS[name]
    text = json.dumps({"a": {"dtype": name, "shape": [2, 4], "data_offsets": [0, count]}}).encode()
    data = bytes([1] * count) if name == "BOOL" else bytes(range(count))
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with safe_open(path, framework="pt") as file:
        theirs = None if name == "F8_E8M0" else file.get_tensor("a")
    ours = open_checkpoint(str(path)).get_tensor("a")
    assert ours.dtype == TORCH_DTYPES[name]
    assert theirs is None or torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


def test_packed_and_unknown_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    entries = {"four": ("F4", [2, 4], 0, 4), "six": ("F6_E2M3", [4], 4, 7)}
    raw(path, {key: {"dtype": d, "shape": s, "data_offsets": [a, b]} for key, (d, s, a, b) in entries.items()}, 7)
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.get_tensor("four").shape == (2, 2)
    assert checkpoint.stored["six"].nbytes == 3
    with pytest.raises(CheckpointError, match=r"'six' of a.safetensors is stored as F6_E2M3"):
        checkpoint.info("six")


def raw(path: Path, header: dict[str, Any] | bytes, data: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def sharded(folder: Path, **changes: Any) -> Path:
    held = state()
    names = {key: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, key in enumerate(held)}
    for name in set(names.values()):
        save_file({key: held[key] for key in held if names[key] == name}, folder / name)
    index = {"metadata": {}, "weight_map": {**names, **changes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_shards_by_folder_by_index_and_without_index(tmp_path: Path) -> None:
    assert_holds(open_checkpoint(str(sharded(tmp_path))), state())
    assert_holds(open_checkpoint(str(tmp_path / "model.safetensors.index.json")), state())
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_holds(open_checkpoint(str(tmp_path)), state())
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="lacks 2 of 3 shards, the first is number 1"):
        open_checkpoint(str(tmp_path))


def test_an_index_that_lies_is_told(tmp_path: Path) -> None:
    wrong = open_checkpoint(str(sharded(tmp_path, **{"blocks.0.q.bias": "model-00001-of-00002.safetensors"})))
    assert wrong.problems == [
        "the index puts 'blocks.0.q.bias' in model-00001-of-00002.safetensors: "
        "it lies in model-00002-of-00002.safetensors"
    ]
    with pytest.raises(CheckpointError, match=r"names a shard that is missing: 'gone.safetensors', for 'more'"):
        open_checkpoint(str(sharded(tmp_path, more="gone.safetensors")))
    for name in ("../a.safetensors", "/etc/passwd", "a/b", ".."):
        with pytest.raises(CheckpointError, match="no plain file name: refused"):
            open_checkpoint(str(sharded(tmp_path, more=name)))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match="truncated or no JSON"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickles(suffix: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}, "model": {"state_dict": state()}}, path,
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    checkpoint = open_checkpoint(str(path))
    assert_holds(checkpoint, state())
    assert checkpoint.unwrapped == ("model", "state_dict")


def test_pickles_of_views_and_of_what_is_no_tensor(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    torch.save({"t": base.t(), "epoch": 3, "sparse": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(str(tmp_path / "a.pt"))
    assert torch.equal(checkpoint.get_tensor("t"), base.t())
    assert checkpoint.left_out == ("epoch", "sparse")


def test_tensors_beside_a_state_dict_are_not_taken_for_it(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"m": torch.ones(2)}}}
    held = {"step": torch.tensor(3), "optimizer": optimizer, "ema": state(), "model": state()}
    torch.save(held, tmp_path / "a.pt")
    checkpoint = open_checkpoint(str(tmp_path / "a.pt"))
    assert_holds(checkpoint, state())
    assert checkpoint.unwrapped == ("model",)


@pytest.mark.parametrize("wrapper", ["module.", "net.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off(wrapper: str, tmp_path: Path) -> None:
    save_file({wrapper + key: value for key, value in state().items()}, tmp_path / "a.safetensors")
    assert_holds(open_checkpoint(str(tmp_path / "a.safetensors")), state())


def test_a_compiled_module_inside_is_unwrapped_unless_names_would_clash(tmp_path: Path) -> None:
    save_file({"a._orig_mod.w": torch.ones(1), "b.w": torch.ones(1)}, tmp_path / "a.safetensors")
    assert set(open_checkpoint(str(tmp_path / "a.safetensors")).keys()) == {"a.w", "b.w"}
    save_file({"a._orig_mod.w": torch.ones(1), "a.w": torch.ones(1)}, tmp_path / "b.safetensors")
    assert set(open_checkpoint(str(tmp_path / "b.safetensors")).keys()) == {"a._orig_mod.w", "a.w"}


def test_a_repository_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--org--name"
    folder = repository / "snapshots" / "abc123" / "transformer"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123", encoding="utf-8")
    save_file(state(), folder / "diffusion_pytorch_model.safetensors")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert_holds(open_checkpoint("org/name", subfolder="transformer"), state())
    assert_holds(open_checkpoint("org/name", revision="abc123", subfolder="transformer"), state())
    for words, said in (
        ({}, "use --subfolder transformer"),
        ({"subfolder": "transfromer"}, "did you mean 'transformer'"),
        ({"subfolder": "../.."}, "unknown subfolder"),
        ({"revision": "v2"}, "unknown revision of org/name in the cache 'v2'"),
        ({"revision": "../main"}, "unknown revision"),
    ):
        with pytest.raises(UsageError, match=said):
            open_checkpoint("org/name", **words)
    with pytest.raises(UsageError, match="hf download org/other"):
        open_checkpoint("org/other")
    with pytest.raises(UsageError, match="there is no nowhere"):
        open_checkpoint("nowhere")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def truncated(path: Path) -> None:
    path.write_bytes(save(state())[:-1])


def compressed(path: Path) -> None:
    torch.save(state(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def evil(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Evil()}))


def evil_zip(path: Path) -> None:
    torch.save({"a": Evil()}, path)


def expanded(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("write", "suffix", "said"),
    [
        (truncated, ".safetensors", "truncated"),
        (lambda p: p.write_bytes(b""), ".safetensors", "holds 0 bytes"),
        (lambda p: p.write_bytes(b"\xff" * 8 + b"{}"), ".safetensors", "at most 100000000 are allowed"),
        (lambda p: p.write_bytes(struct.pack("<Q", 99) + b"{}"), ".safetensors", "says its header has 99 bytes"),
        (lambda p: raw(p, b"[]"), ".safetensors", "does not begin with"),
        (lambda p: raw(p, b'{"a": NaN}'), ".safetensors", "NaN is no JSON"),
        (lambda p: raw(p, {"a": {**ENTRY, "data_offsets": [0, 400]}}, 4), ".safetensors", "'a' is U8"),
        (lambda p: raw(p, {"a": {**ENTRY, "shape": [400], "data_offsets": [0, 400]}}, 4), ".safetensors", "truncated"),
        (lambda p: raw(p, {"a": ENTRY, "b": ENTRY}, 4), ".safetensors", "'b' starts at byte"),
        (lambda p: raw(p, {"a": {**ENTRY, "data_offsets": [-4, 0]}}, 4), ".safetensors", "data_offsets"),
        (lambda p: raw(p, {"a": {**ENTRY, "shape": [-4]}}, 4), ".safetensors", "'a' has shape"),
        (lambda p: raw(p, {"a": {**ENTRY, "shape": [1 << 63, 4, 0]}}, 4), ".safetensors", "more elements than memory"),
        (lambda p: raw(p, {"a": {**ENTRY, "dtype": "U9"}}, 4), ".safetensors", "dtype 'U9'; valid: BOOL"),
        (lambda p: raw(p, b'{"a":{},"a":{}}', 4), ".safetensors", "the key 'a' twice"),
        (lambda p: raw(p, {"a": ENTRY}, 5), ".safetensors", "longer than its header says"),
        (evil, ".pt", "nothing in it was run"),
        (evil_zip, ".pt", "nothing in it was run"),
        (compressed, ".pt", "holds compressed members"),
        (expanded, ".pt", "'a' claims"),
        (lambda p: p.write_bytes(b"no pickle"), ".pt", "no pickle|damaged"),
        (lambda p: torch.save([1, 2], p), ".pt", "holds a list, not a state dict"),
        (lambda p: torch.save({"ema": state(), "raw": state()}, p), ".pt", "several sets of tensors: ema, raw"),
    ],
)
def test_bad_files_are_refused_in_words(
    write: Callable[[Path], object], suffix: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bad{suffix}"
    write(path)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(str(path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert not (tmp_path / "ran").exists()


def test_folders_that_hold_no_checkpoint_or_several(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no checkpoint file"):
        open_checkpoint(str(tmp_path))
    for name in ("a", "b"):
        save_file(state(), tmp_path / f"{name}.safetensors")
    with pytest.raises(UsageError, match=r"several checkpoints: a.safetensors, b.safetensors"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="is no checkpoint"):
        open_checkpoint(str(tmp_path / "notes.txt"))


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state(), path)
    checkpoint = open_checkpoint(str(path))
    os.truncate(path, 400)
    with pytest.raises(CheckpointError, match="it was cut while open"):
        [checkpoint.get_tensor(key) for key in list(checkpoint.keys())]


def test_packed_floats_are_compared_by_their_bytes(tmp_path: Path) -> None:
    entry = {"dtype": "F4", "shape": [32, 64], "data_offsets": [0, 1024]}
    path = raw(tmp_path / "a.safetensors", {"four": entry}, 1024)
    for command in ("verify", "match"):
        result = CliRunner().invoke(app, ["weights", command, str(path), str(path)])
        assert result.exit_code == 0, result.output
