"""One run of the benchmark: which plant, where, in which pair, dtype and input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fixtures.mutations import ANATOMIES, MUTATIONS, Spot
from fixtures.mutations.edits import wrapped
from fixtures.plants import PLANTS, Plant, native_with
from parity.diagnose.planting import planted as signature_planted
from parity.diagnose.signature import SIGNATURES
from parity.execution.tap import Tap
from parity.pair import Build, ModelPair
from parity.registry import discover

discover("parity.diagnose.signatures")

SITES = ("block.self_attn", "block.cross_attn", "block.ffn", "block")
"""Kinds of tap a signature is planted at, in turn."""
_CATEGORY = {
    "rope": "rope", "rms": "norm", "norm": "norm", "eps": "norm", "q": "norm", "adaln": "modulation",
    "modulate": "modulation", "gate": "modulation", "scale": "modulation", "time": "timestep",
    "timestep": "timestep", "sinusoid": "timestep", "gelu": "activation", "swiglu": "activation",
    "softmax": "attention", "text": "text", "patch": "layout", "output": "layout", "lora": "lora",
}  # fmt: skip
"""Category of a plant of the bundled pair, by the first word of its name; others are of their kind."""


@dataclass(frozen=True)
class Trial:
    """One run.

    Args:
        source: "signature", "mutation", "plant" or "healthy". name: the plant's.
        where: "first", "middle", "last", "all" or "" outside blocks. site: the tap kind of a signature's plant.
        pair, dtype, inputs, seed: as named.
    """

    source: str
    name: str
    pair: str
    dtype: str
    where: str = ""
    inputs: str = "shape0"
    seed: int = 0
    site: str = ""

    @property
    def key(self) -> str:
        """What makes it unique: interrupted, the benchmark goes on behind the last one."""
        return "|".join(map(str, asdict(self).values()))

    @property
    def group(self) -> tuple[str, str, str, int]:
        """Trials of a group share the reference and its passes."""
        return self.pair, self.dtype, self.inputs, self.seed


@dataclass(frozen=True)
class Planted:
    """A planted pair and what is to be found.

    Args:
        pair: with the plant. expect: tap names where it shows first, any of them.
        later: those of the other blocks it is in, where it shows first if it changes no bit in the first one.
        kind: "logic", "precision", "equivalent". category: as bugs have it.
        named: pattern of the words that name it, "" for signatures. lora: shows with a LoRA on only.
    """

    pair: ModelPair
    expect: tuple[str, ...]
    kind: str
    category: str
    named: str = ""
    lora: bool = False
    later: tuple[str, ...] = ()


def blocks_of(pair: str, where: str) -> tuple[int, ...]:
    """Return the blocks a word means."""
    depth = ANATOMIES[pair].layers
    return {"first": (0,), "middle": (depth // 2,), "last": (depth - 1,)}.get(where, tuple(range(depth)))


def planted(trial: Trial, pair: ModelPair) -> Planted:
    """Plant what a trial asks for."""
    makers: dict[str, Callable[[Trial, ModelPair, list[Tap]], Planted]] = {
        "signature": _signature, "mutation": _mutation, "plant": _plant,
    }  # fmt: skip
    return makers[trial.source](trial, pair, list(pair.taps(Build(size="tiny"))))


def _taps_of(taps: list[Tap], kind: str, blocks: tuple[int, ...]) -> list[Tap]:
    found = [t for t in taps if t.kind == kind]
    return [found[b] for b in blocks if b < len(found)] if kind.startswith("block") else found


def in_blocks(name: str) -> bool:
    """Say whether a signature's edit is of what blocks hold."""
    return SIGNATURES[name].category not in ("timestep", "text", "layout")


def _edit(trial: Trial, pair: ModelPair, taps: list[Tap]) -> Planted:
    """Edit the native's modules; the first tap that differs must be of a block that was edited."""
    found = SIGNATURES[trial.name]
    blocks = _taps_of(taps, "block", blocks_of(trial.pair, trial.where)) if in_blocks(trial.name) else []
    modules = [t.native.module for t in blocks if t.native is not None and t.native.module]
    inside = [t.name for t in taps if not blocks or t.name.split(".")[0] == blocks[0].name]
    later = [t.name for t in taps if t.name.split(".")[0] in {b.name for b in blocks[1:]}]
    kind = "logic" if found.on == "logic" else "precision"
    changed = signature_planted(pair, trial.name, modules or [""]).pair
    return Planted(changed, tuple(inside), kind, "signature", trial.name, found.category == "lora", tuple(later))


def _signature(trial: Trial, pair: ModelPair, taps: list[Tap]) -> Planted:
    """Wrap the native's modules at taps of one kind, or edit them."""
    if not callable(SIGNATURES[trial.name].plant):
        return _edit(trial, pair, taps)
    chosen = _taps_of(taps, trial.site, blocks_of(trial.pair, trial.where))
    plant = SIGNATURES[trial.name].plant
    assert callable(plant)
    paths = [t.native.module for t in chosen if t.native is not None and t.native.module]

    def wrap(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        came_in = next((a for a in tensors if a.shape == out.shape), out)
        return plant(out, came_in).to(out.dtype)

    return Planted(wrapped(pair, paths, wrap), (chosen[0].name,), "logic", "signature", trial.name)


def _mutation(trial: Trial, pair: ModelPair, taps: list[Tap]) -> Planted:
    m, blocks = MUTATIONS[trial.name], blocks_of(trial.pair, trial.where)
    kinds = {t.kind for t in taps}
    kind = next((k for k in m.expect if k in kinds), "final_output")
    changed = m.apply(pair, ANATOMIES[trial.pair], Spot(blocks, trial.seed))
    everywhere = ANATOMIES[trial.pair].rope_shared and m.category == "rope" and not m.name.startswith("rope_weight")
    first = _taps_of(taps, kind, (0,) if everywhere else blocks)
    names = [first[0].name]
    if m.either:
        names += [t.name for k in m.expect for t in _taps_of(taps, k, (0,))]
    return Planted(changed, tuple(names), m.kind, m.category, m.named, m.lora)


_WHOLE_ADAPTER = ("lora_alpha_ignored",)
_ONE_BLOCK = ("gate_omitted", "bias_dropped", "swiglu_swapped")


def _plant(trial: Trial, pair: ModelPair, taps: list[Tap]) -> Planted:
    plant: Plant = PLANTS[trial.name]
    changed = plant.apply(pair)
    fixed = plant.name in _ONE_BLOCK or changed.load is not None or plant.lora
    whole = plant.name in _WHOLE_ADAPTER
    blocks = blocks_of(trial.pair, "all" if whole else trial.where)
    if trial.where not in ("", "all") and plant.expect.startswith("block") and not fixed:
        changed = native_with(changed, blocks=frozenset(blocks))
    first = _taps_of(taps, plant.expect, (1,) if fixed and not whole else blocks)
    return Planted(
        changed, (first[0].name,), plant.kind, _category(plant), _WORDS.get(plant.name, r"`"), plant.lora
    )  # fmt: skip


def _category(plant: Plant) -> str:
    usual = "precision" if plant.kind == "precision" else "weights"
    if plant.kind == "precision":
        return usual
    return _CATEGORY.get(plant.name.split("_")[0], usual)


_WORDS: dict[str, str] = {
    "lora_layer_missed": r"lora|adapter|to_q|times|operand",
    "q_norm_missing": r"norm|pow|rsqrt|mean",
    "text_mask_ignored": r"mask",
    "patch_order": r"order|permut|channels|group|einsum",
    "rope_halves": r"halves|pairs|rotat|unflatten|order|cat|stack|exchanged",
}


def dtype_of(name: str) -> torch.dtype:
    """Return a dtype by its name."""
    found: torch.dtype = getattr(torch, name)
    return found


def healthy(trial: Trial) -> Trial:
    """Return the trial's run without a plant."""
    return replace(trial, source="healthy", name="", where="", site="")
