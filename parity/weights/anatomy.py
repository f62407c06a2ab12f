"""What a checkpoint is, from names and shapes alone: blocks, attention, sizes, norms, modulation."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from parity.weights.names import Shapes, Stack, case_of, module_role, separator_of, stacks_of, templated

FUSED, SEPARATE, Q_KV = "fused QKV", "separate Q, K, V", "Q + fused KV"
_SIZES = ("hidden", "head_dim", "heads", "ffn", "gated_ffn")


@dataclass(frozen=True)
class Anatomy:
    """What names and shapes tell of a model; None where they do not tell.

    Args:
        stacks: lists of blocks, the longest first.
        attention: architecture by the path of the attention module within its stack.
        hidden, head_dim, heads, ffn: sizes; gated_ffn whether the ffn has a gate.
        norms: kinds of norm with how many, qk norms apart.
        modulation: how modulation is made, with the number of its vectors.
        separator, case: of names.
    """

    stacks: tuple[Stack, ...]
    attention: Mapping[str, str]
    hidden: int | None
    head_dim: int | None
    heads: int | None
    ffn: int | None
    gated_ffn: bool | None
    norms: Mapping[str, int]
    modulation: str | None
    separator: str
    case: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        stacks = [
            {"prefix": s.prefix, "blocks": s.count, "tensors_per_block": len(s.tensors), "irregular": list(s.irregular)}
            for s in self.stacks
        ]
        return {
            "naming": {"separator": self.separator, "case": self.case}, "blocks": stacks,
            "attention": dict(self.attention), "sizes": {name: asdict(self)[name] for name in _SIZES},
            "norms": dict(self.norms), "modulation": self.modulation,
        }  # fmt: skip


def anatomy_of(shapes: Shapes) -> Anatomy:
    """Read the anatomy off names and shapes."""
    stacks = tuple(sorted(stacks_of(shapes), key=lambda stack: -stack.count * len(stack.tensors)))
    templates = {templated(key, stacks)[0]: shape for key, shape in shapes.items()}
    main = stacks[0].tensors if stacks else dict(shapes)
    hidden = _hidden(main)
    head_dim = _head_dim(main, hidden)
    ffn = _ffn(main, hidden)
    return Anatomy(
        stacks, _attention(templates), hidden, head_dim, hidden // head_dim if hidden and head_dim else None,
        ffn[0], ffn[1], _norms(shapes), _modulation(templates, hidden),
        separator_of(list(shapes)), case_of(list(shapes)),
    )  # fmt: skip


def _attention(templates: Shapes) -> dict[str, str]:
    roles: dict[str, set[str]] = defaultdict(set)
    for template in templates:
        module = template.rpartition(".")[0]
        parent = module.rpartition(".")[0]
        roles[parent].add(module_role(template))
    out = {}
    for parent, held in roles.items():
        if "qkv" in held:
            out[parent] = FUSED
        elif "kv" in held:
            out[parent] = Q_KV
        elif {"q", "k", "v"} <= held:
            out[parent] = SEPARATE
    return out


def _hidden(tensors: Shapes) -> int | None:
    """Return the width: what q, k, v or qkv read, or the size most matrices have."""
    reads = [shape[1] for key, shape in tensors.items() if len(shape) == 2 and module_role(key) in ("q", "qkv")]
    sizes = reads or [size for shape in tensors.values() if len(shape) == 2 for size in shape]
    return Counter(sizes).most_common(1)[0][0] if sizes else None


def _head_dim(tensors: Shapes, hidden: int | None) -> int | None:
    """Return the head size where a norm of q or k is per head; a norm over all heads does not tell."""
    sizes = [math.prod(shape) for key, shape in tensors.items() if module_role(key) == "qk_norm" and shape]
    found = [size for size in sizes if hidden and size < hidden and hidden % size == 0]
    return Counter(found).most_common(1)[0][0] if found else None


def _ffn(tensors: Shapes, hidden: int | None) -> tuple[int | None, bool | None]:
    """Return the inner width of the ffn and whether it is gated: two matrices into it, or one of twice the width."""
    attending = ("q", "k", "v", "kv", "qkv", "o", "modulation")
    weights = [(key, shape) for key, shape in tensors.items() if len(shape) == 2 and module_role(key) not in attending]
    back = [shape[1] for _, shape in weights if shape[0] == hidden and shape[1] != hidden]
    if not back:
        back = [shape[1] for key, shape in weights if shape[0] == hidden and "norm" not in key]
    if not back:
        return None, None
    inner = max(back)
    into = [shape[0] for _, shape in weights if shape[1] == hidden and shape[0] in (inner, 2 * inner)]
    return inner, 2 * inner in into or len(into) > len([size for size in back if size == inner])


def _norms(shapes: Shapes) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for key in shapes:
        name, _, parameter = key.rpartition(".")
        module = name.rpartition(".")[2] if name.rpartition(".")[2].isalpha() or "norm" in name else name
        if parameter not in ("weight", "scale", "gamma") or "norm" not in module.lower() or len(shapes[key]) != 1:
            continue
        kind = "LayerNorm" if f"{name}.bias" in shapes else "RMSNorm or LayerNorm without bias"
        kinds[f"{kind} of q and k" if module_role(key) == "qk_norm" else kind] += 1
    return dict(kinds)


def _modulation(templates: Shapes, hidden: int | None) -> str | None:
    found: list[str] = []
    for template, shape in templates.items():
        if module_role(template) != "modulation" or template.endswith("bias"):
            continue
        if template.endswith("weight") and len(shape) == 2:
            times = f"{shape[0] // hidden} vectors" if hidden and shape[0] % hidden == 0 else f"{shape[0]} rows"
            found.append(f"a linear of {times}: {template}")
        else:
            vectors = torch.Size(shape).numel() // hidden if hidden else 0
            found.append(f"a table of {vectors} vectors: {template}")
    return "; ".join(sorted(found, key=lambda text: "*" not in text)[:3]) or None
