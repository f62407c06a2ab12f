"""Precision and recall of matching by value, by relation and noise.

Usage: python scripts/weights_recall.py [--seeds N] [--blocks N] [--width C] [--weights CHECKPOINT]

Without `--weights` the matrices are generated (heavy-tailed rows, correlated columns); with it they are
matrices of a checkpoint, trained ones say. In each trial one native tensor is made by one relation and put beside two
unrelated ones; it is found when the rows and columns the match names make it, element by element, without the noise. A
match of an unrelated tensor with more than low confidence is false.
"""

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fixtures.checkpoints import Trained, longcat_like, noisy, per_head, shuffled, to_half_split
from parity.io.checkpoints import open_checkpoint
from parity.weights.matching.entries import part_from
from parity.weights.matching.matcher import Entry, Matcher, Options
from parity.weights.source import StateDictSource

State = dict[str, Tensor]
NOISES = (0.0, 0.01, 0.05, 0.1, 0.3)
HEADS = 4


def _repeated(value: Tensor, times: int = 3) -> Tensor:
    """Repeat each head, as a port does that shares keys among queries. Shapes: [I, J] to [times I, J]."""
    out: Tensor = value.unflatten(0, (HEADS, -1)).repeat_interleave(times, 0).flatten(0, 1)
    return out


def _fourth(value: Tensor) -> Tensor:
    return value[: value.shape[0] // 4]


RELATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rename": lambda a, b, c: a,
    "fused [3, heads, head_dim]": lambda a, b, c: torch.cat([a, b, c]),
    "fused [heads, 3, head_dim]": lambda a, b, c: per_head([a, b, c], HEADS),
    "fused kv": lambda a, b, c: torch.cat([b, c]),
    "fused, unequal (GQA)": lambda a, b, c: torch.cat([a, _fourth(b), _fourth(c)]),
    "columns fused": lambda a, b, c: torch.cat([a, b], dim=1),
    "split": lambda a, b, c: a[a.shape[0] // 4 : a.shape[0] // 2],
    "transposed": lambda a, b, c: a.t().contiguous(),
    "RoPE half-split": lambda a, b, c: to_half_split(a, HEADS),
    "RoPE inside qkv": lambda a, b, c: torch.cat([to_half_split(a, HEADS), to_half_split(b, HEADS), c]),
    "heads shuffled": lambda a, b, c: shuffled(a, 2 * HEADS),
    "heads shuffled on columns": lambda a, b, c: shuffled(a, 2 * HEADS, 1),
    "gate and up, either order": lambda a, b, c: torch.cat([c, a]),
    "heads shuffled, RoPE half-split": lambda a, b, c: to_half_split(shuffled(a, 2 * HEADS), 2 * HEADS),
    "heads repeated (GQA)": lambda a, b, c: _repeated(a),
    "repeated as a whole": lambda a, b, c: torch.cat([a, a]),
    "cast to bfloat16": lambda a, b, c: a.bfloat16(),
    "cast to float8_e4m3fn": lambda a, b, c: a.to(torch.float8_e4m3fn),
    "int8, a scale a row": lambda a, b, c: (a / a.abs().amax(1, keepdim=True) * 127).round().to(torch.int8),
}


@lru_cache(maxsize=8)
def generated(seed: int, blocks: int, width: int) -> State:
    """Return the matrices of a generated model."""
    return {k: v for k, v in longcat_like(blocks, width, seed=seed).items() if v.ndim == 2 and min(v.shape) > 16}


@lru_cache(maxsize=1)
def of_checkpoint(path: str, most: int) -> State:
    """Return the first matrices of a checkpoint, not larger than 4M elements."""
    with open_checkpoint(path) as held:
        keys = [k for k, s in held.shapes.items() if len(s) == 2 and min(s) >= 64 and s.numel() <= 1 << 22]
        return {key: held.get_tensor(key).float() for key in keys[:most]}


def chosen(state: State, rng: random.Random) -> list[str]:
    """Return three matrices of one shape with rows for the heads."""
    shapes = {value.shape for value in state.values() if value.shape[0] % (4 * HEADS) == value.shape[1] % 8 == 0}
    groups = [[k for k, v in state.items() if v.shape == shape] for shape in sorted(shapes)]
    return rng.sample(rng.choice([group for group in groups if len(group) >= 3]), 3)


def trial(state: State, name: str, noise: float, seed: int) -> tuple[bool, int]:
    """Return whether the planted tensor was found, and how many matches are false."""
    rng = random.Random(zlib.crc32(name.encode()) + seed)
    keys = chosen(state, rng)
    right = RELATIONS[name](*(state[key] for key in keys))
    plain = right.float()
    native = {"planted": _stored(noisy(plain, noise, seed), right.dtype) if noise else right}
    native["unrelated"] = Trained(10_000 + seed).matrix(*plain.shape)
    native["shuffled"] = plain.reshape(-1)[torch.randperm(plain.numel())].view(plain.shape)
    entries = list(Matcher(StateDictSource(state), StateDictSource(native), Options()).entries())
    placed = [entry for entry in entries if entry["native"] is not None]
    false = sum(entry["native"] != "planted" and entry["confidence"] != "low" for entry in placed)
    mine = [entry for entry in placed if entry["native"] == "planted"]
    return bool(mine) and _makes(mine, state, right), false


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else value.to(dtype)


def _makes(entries: Sequence[Entry], state: State, right: Tensor) -> bool:
    """Whether the lines that the entries name, put where they say, are the tensor, up to scales of its rows."""
    made = torch.zeros(right.shape)
    for entry in entries:
        axis, part, _ = part_from(entry)
        value = state[part.key].index_select(part.axis, torch.from_numpy(part.reference)).movedim(part.axis, axis)
        made.index_copy_(axis, torch.from_numpy(part.native), value)
    if right.dtype == torch.int8:
        made = (made / made.abs().amax(1, keepdim=True) * 127).round()
    return torch.equal(made.to(right.dtype).float(), right.float())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--weights", help="a checkpoint whose matrices are used instead of generated ones")
    given = parser.parse_args()
    print("| relation | " + " | ".join(f"noise {noise:.0%}" for noise in NOISES) + " |")
    print("|---|" + "---|" * len(NOISES))
    planted = recalled = false = 0
    for name in RELATIONS:
        cells = []
        for noise in NOISES:
            trials = [trial(_state(given, seed), name, noise, seed) for seed in range(given.seeds)]
            found = sum(hit for hit, _ in trials)
            cells.append(f"{found}/{given.seeds}")
            planted, recalled = planted + given.seeds, recalled + found
            false += sum(wrong for _, wrong in trials)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    precision = recalled / max(recalled + false, 1)
    print(f"\nrecall {recalled} of {planted}")
    print(f"precision {precision:.3f}: {false} false matches of {2 * planted} unrelated tensors")


def _state(given: argparse.Namespace, seed: int) -> State:
    return of_checkpoint(given.weights, 40) if given.weights else generated(seed, given.blocks, given.width)


if __name__ == "__main__":
    main()
