"""Convert a LoRA file from one model's modules to another's: `python convert.py IN.safetensors OUT.safetensors`.

Needs torch and safetensors alone. Made by `parity lora converter` for one pair of models: `TABLE` says which rows or
columns of which weight become which of the other's. W is cut, transposed, permuted and joined; B @ A is linear in W, so
the same is done to B and A, and every weight is changed as before. A module without a place in the table, a size that
differs or a key that is not understood is an error: nothing is left out in silence.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

TABLE: dict[str, Any] = {}

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "net.")
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
HYPHEN = "___lorahyphen___"
ROLES = (
    (r"\.lora_up\.blocks\.(\d+)\.weight", "B"), (r"\.lora_(?:down|A)\.(\d+)\.weight", "A"),
    (r"\.lora_(?:up|B)\.(\d+)\.weight", "B"), (r"\.lora_(?:down|A)(?:\.default)?(?:\.weight)?", "A"),
    (r"\.lora_(?:up|B)(?:\.default)?(?:\.weight)?", "B"), (r"\.alpha_scale", "scale"), (r"\.(?:lora_)?alpha", "alpha"),
    (r"\.lora_rank", "rank"),
)  # fmt: skip
Pair = tuple[torch.Tensor, torch.Tensor, float]
"""A [R, in], B [out, R] and the scaling of B @ A."""


class Refused(Exception):
    """The file cannot be converted; says why."""


def main(arguments: list[str] | None = None) -> int:
    """Convert a file; 1 where it cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN.safetensors")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--lora-alpha", type=float, help="alpha of the training, where the file has none")
    given = parser.parse_args(arguments)
    try:
        pairs = read(given.source, given.lora_alpha)
        tensors = written(converted(pairs))
    except Refused as error:
        sys.stderr.write(f"not converted: {error}\n")
        return 1
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, given.out, {"format": "pt"})
    sys.stdout.write(f"{given.out}: {len(pairs)} modules became {len(tensors) // len(TABLE['names'])}\n")
    return 0


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path, alpha: float | None) -> dict[str, Pair]:
    """Read A, B and scaling of every module, by the names of the table."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings = _settings(path, file.metadata() or {})
    modules = {piece["reference"] for piece in TABLE["pieces"]}
    flat: dict[str, list[str]] = {}
    for module in modules:
        flat.setdefault(module.replace(".", "_"), []).append(module)
    groups: dict[str, dict[tuple[str, int], torch.Tensor]] = {}
    for key, value in tensors.items():
        name, role, part = _parsed(key)
        groups.setdefault(_resolved(name, modules, flat), {})[role, part] = value
    if not groups:
        raise Refused("the file holds no tensors")
    return {module: _pair(module, held, settings, alpha) for module, held in groups.items()}


def _settings(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    beside = path.parent / "adapter_config.json"
    if "lora_adapter_metadata" in header:
        found = json.loads(header["lora_adapter_metadata"])
        return {key.removeprefix("transformer."): value for key, value in found.items()}
    if path.stem == "adapter_model" and beside.is_file():
        return dict(json.loads(beside.read_text(encoding="utf-8")))
    alphas = (header.get(name) for name in ("lora_alpha", "alpha", "network_alpha", "ss_network_alpha"))
    return {"lora_alpha": next((float(alpha) for alpha in alphas if alpha not in (None, "", "None")), None)}


def _parsed(key: str) -> tuple[str, str, int]:
    for pattern, role in ROLES:
        found = re.search(pattern + r"\Z", key)
        if found and found.start():
            part = int(found[1]) if found.groups() and found[1] else 0
            return key[: found.start()], role, part
    raise Refused(f"{key} is not a factor of a LoRA; convert such a file by `parity lora convert`")


def _resolved(name: str, modules: Iterable[str], flat: Mapping[str, list[str]]) -> str:
    name = name.removeprefix(f"lora{HYPHEN}").replace(HYPHEN, ".")
    names = [name, *(name[len(prefix) :] for prefix in PREFIXES if name.startswith(prefix))]
    for candidate in names:
        if candidate in modules:
            return candidate
    starts = [name[len(prefix) :] for prefix in FLAT_PREFIXES if name.startswith(prefix)]
    found = next((flat[start] for start in (*starts, *names) if start in flat), [])
    if len(found) != 1:
        why = f"fits {' and '.join(found)}" if found else "has no place in the table"
        raise Refused(f"the module {name!r} {why}")
    return found[0]


def _pair(module: str, held: Mapping[tuple[str, int], torch.Tensor], settings: Mapping[str, Any],
          given: float | None) -> Pair:  # fmt: skip
    down, up = ([held[key].float() if held[key].element_size() == 1 else held[key] for key in sorted(held)
                 if key[0] == role] for role in "AB")  # fmt: skip
    if not down or not up:
        raise Refused(f"{module}: {'A' if not down else 'B'} is missing")
    if any(value.ndim != 2 for value in (*down, *up)):
        raise Refused(f"{module}: A or B is no matrix")
    A, B = torch.cat(down), up[0] if len(up) == 1 else torch.block_diag(*up)
    r = up[0].shape[1]
    if A.shape[0] != B.shape[1]:
        raise Refused(f"{module}: A is {tuple(A.shape)}, B {tuple(B.shape)}")
    return A, B, _scaling(module, held, settings, given, r)


def _scaling(module: str, held: Mapping[tuple[str, int], torch.Tensor], settings: Mapping[str, Any],
             given: float | None, r: int) -> float:  # fmt: skip
    if ("scale", 0) in held:
        return float(held["scale", 0])
    if ("alpha", 0) in held:
        if not (alpha := float(held["alpha", 0])):
            raise Refused(f"{module}: alpha is 0, which loaders read as nothing or as r")
        return alpha / r
    patterns = settings.get("alpha_pattern") or {}
    own = [value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
    stated = own[0] if own else settings.get("lora_alpha")
    if stated is not None:
        return float(stated) / (math.sqrt(r) if settings.get("use_rslora") else r)
    return 1.0 if given is None else given / r


# --- converting -------------------------------------------------------------------------------------------------------


def converted(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """Carry every pair to the other model's modules."""
    for module, (A, B, _) in pairs.items():
        _check_size(module, (B.shape[0], A.shape[1]))
    natives: dict[str, list[dict[str, Any]]] = {}
    for piece in TABLE["pieces"]:
        natives.setdefault(piece["native"], []).append(piece)
    out = {}
    for native, pieces in natives.items():
        placed = [(piece, *_taken(piece, pairs[piece["reference"]])) for piece in pieces if piece["reference"] in pairs]
        if placed:
            out[native] = _trimmed(_joined(placed, pieces))
    return out


def _check_size(module: str, given: tuple[int, int]) -> None:
    wanted = tuple(TABLE["sizes"][module])
    for name, one, other in zip(("outputs", "inputs"), given, wanted, strict=True):
        if other and one != other:
            raise Refused(f"{module}: the LoRA is of a model with {one} {name}, the table of one with {other}")


def _taken(piece: Mapping[str, Any], pair: Pair) -> Pair:
    A, B, scaling = pair
    if piece["dim"] == 0:
        B = B[piece["start"] : piece["stop"]]
    else:
        A = A[:, piece["start"] : piece["stop"]]
    if piece["transpose"]:
        A, B = B.t(), A.t()
    if piece["permute"] is not None:
        B = B[_order(piece["permute"], B.shape[0])]
    if piece["columns"] is not None:
        A = A[:, _order(piece["columns"], A.shape[1])]
    return A, B, scaling


def _order(words: Mapping[str, Any], count: int) -> torch.Tensor:
    """Return the order that the table's words describe, of so many rows."""
    if "repeat" in words:
        times, size = int(words["repeat"]), int(words["size"])
        return torch.arange(count).view(-1, 1, size).expand(-1, times, -1).reshape(-1)
    if "view" in words:
        view, dims = ([int(n) for n in words[name]] for name in ("view", "dims"))
        return torch.arange(math.prod(view)).reshape(view).permute(dims).reshape(-1)
    if "blocks" in words:
        size, order = int(words["blocks"]), torch.tensor(words["order"])
        return (order[:, None] * size + torch.arange(size)).reshape(-1)
    return torch.tensor(words["rows"])


def _joined(placed: list[tuple[Any, torch.Tensor, torch.Tensor, float]], pieces: list[dict[str, Any]]) -> Pair:
    if len(pieces) == 1:
        return placed[0][1:]
    scaling = next((one[3] for one in placed if one[3]), 0.0)
    parts = [(piece, A, B if own == scaling else B.double() * (own / scaling)) for piece, A, B, own in placed]
    rows, size = pieces[0]["native_dim"] == 0, max(piece["native_stop"] for piece in pieces)
    kept = [A if rows else B for _, A, B in parts]
    moved = [(piece, B if rows else A.t()) for piece, A, B in parts]
    if all(torch.equal(kept[0], other) for other in kept[1:]):
        shared, ranks = kept[0], [0] * len(moved)
        total = moved[0][1].shape[1]
    else:
        shared = torch.cat(kept, dim=0 if rows else 1)
        widths = [part.shape[1] for _, part in moved]
        ranks, total = [sum(widths[:n]) for n in range(len(widths))], sum(widths)
    out = torch.zeros(size, total, dtype=max((part.dtype for _, part in moved), key=lambda dtype: dtype.itemsize))
    for (piece, part), column in zip(moved, ranks, strict=True):
        out[piece["native_start"] : piece["native_stop"], column : column + part.shape[1]] = part
    return (shared, out, scaling) if rows else (out.t(), shared, scaling)


def _trimmed(pair: Pair) -> Pair:
    """Leave out columns of B that are zero: what is cut from a block-diagonal B has its own rank back."""
    A, B, scaling = pair
    used = B.ne(0).any(0) & A.ne(0).any(1)
    return (A[used], B[:, used], scaling) if bool(used.any()) else pair


def written(pairs: Mapping[str, Pair]) -> dict[str, torch.Tensor]:
    """Spell the pairs as the table says."""
    out: dict[str, torch.Tensor] = {}
    flatten: Callable[[str], str] = (lambda m: m.replace(".", "_")) if TABLE["flat"] else str
    for module, (A, B, scaling) in pairs.items():
        A, B = (value.float() if value.dtype == torch.float64 else value for value in (A, B))
        if TABLE["folded"]:
            B, scaling = (B.double() * scaling).float(), 1.0
        values = (A, B, torch.tensor(scaling * A.shape[0], dtype=torch.float32))
        for name, value in zip(TABLE["names"], values, strict=False):
            out[name.format(flatten(module))] = value
    return out


if __name__ == "__main__":
    sys.exit(main())
