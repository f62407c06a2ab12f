"""What the writers of all dialects share: factors as they are stored, and what a dialect cannot hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.formats.names import flattened
from parity.lora.loaded import LoadedLora, Target
from parity.lora.problems import some

_HOLDERS = {
    "diff": "comfyui", "diff_m": "comfyui", "diff_b": "comfyui, peft or diffusers", "set_weight": "comfyui or peft",
    "set_bias": "peft", "magnitude": "comfyui, kohya or peft",
}  # fmt: skip
"""Where what some dialects have no word for can be written."""
_WHOLE = "comfyui, diffusers, kohya or peft"


def _cannot(dialect: str, what: str, module: str, holders: str) -> LoraFileError:
    return LoraFileError("cannot_hold", f"{dialect} cannot hold {what} {module}\nwhat can: {holders}")


def pairs_in(
    lora: LoadedLora, dialect: str, extras: Collection[str] = (), convolutions: bool = False, embeddings: bool = False
) -> Iterator[Target]:
    """Yield the targets, once it is sure that the dialect can hold all of them.

    Raises:
        LoraFileError: a target changes what the dialect has no word for, or names are not resolved.
    """
    held = set(extras)
    for target in lora.targets.values():
        if missing := sorted(set(target.extras) - held):
            raise _cannot(dialect, f"{', '.join(missing)} of", target.module, _HOLDERS[missing[0]])
        if target.kernel and not convolutions:
            raise _cannot(dialect, "the convolution", target.module, _WHOLE)
        if target.embedding and not embeddings:
            raise _cannot(dialect, "the embedding", target.module, _WHOLE)
        if target.factors is None and not target.extras:
            raise LoraFileError("cannot_hold", f"{target.module} has nothing to write")
    yield from lora.targets.values()


def check_dotted(lora: LoadedLora, dialect: str) -> None:
    """Refuse names whose dots are not known.

    Raises:
        LoraFileError: the underscores were not resolved.
    """
    if lora.underscored:
        text = f"{dialect} needs dotted module names, the file has underscores: name the base with --base"
        raise LoraFileError("needs_base", text)


def check_unambiguous(lora: LoadedLora, dialect: str) -> None:
    """Refuse names that become one once their dots are underscores.

    Raises:
        LoraFileError: two modules would share a key.
    """
    seen: dict[str, str] = {}
    for module in lora.targets:
        other = seen.setdefault(flattened(module), module)
        if other != module:
            raise LoraFileError("ambiguous_name", f"{dialect} writes {some([other, module])} with one and the same key")


def stored(value: Tensor) -> Tensor:
    """Return a tensor as it is written: float64, which no loader expects, as float32."""
    return (value.float() if value.dtype == torch.float64 else value).contiguous()


def factors_of(target: Target) -> tuple[Tensor, Tensor]:
    """Return A and B as stored, with the kernel of a convolution.

    Shapes: A [R, I], B [O, R]; of a convolution A [R, C, *kernel], B [O, R, 1, ...].
    """
    assert target.factors is not None
    A, B = (stored(value) for value in target.factors())
    if target.kernel:
        A = A.reshape(A.shape[0], -1, *target.kernel)
        B = B.reshape(*B.shape, *(1 for _ in target.kernel))
    return A, B


def alpha_of(target: Target) -> tuple[int, float]:
    """Return the rank of the whole pair and the alpha that gives its scaling."""
    return target.rank, target.scaling * target.rank


def folded(target: Target, exactly: bool = True) -> tuple[Tensor, Tensor, float]:
    """Return A, B and alpha with the scaling folded into B, so that loaders that drop alpha are right too.

    With `exactly`, only where it costs no bit of the stored dtype; otherwise B becomes float32.
    """
    A, B = factors_of(target)
    rank, alpha = alpha_of(target)
    scaled = B.double() * target.scaling
    if target.scaling and torch.equal(scaled.to(B.dtype).double(), scaled):
        return A, scaled.to(B.dtype), float(rank)
    return (A, B, alpha) if exactly else (A, scaled.float(), float(rank))


def scalar(value: float) -> Tensor:
    """Return alpha as it is stored."""
    return torch.tensor(value, dtype=torch.float32)
