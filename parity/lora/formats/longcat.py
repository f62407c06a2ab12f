"""LongCat's own: `lora___lorahyphen___<module>.lora_down.weight`; `.alpha_scale` is alpha / r already.

A fused layer has one `lora_down` of n times r rows and `lora_up.blocks.0` to `n - 1`, each for its own rows.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from parity.lora.formats.file import Dialect, LoraFile, Written
from parity.lora.formats.keys import HYPHEN
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.summary import Habits
from parity.lora.formats.writing import check_dotted, factors_of, pairs_in, scalar
from parity.lora.loaded import LoadedLora, Target

PREFIX = f"lora{HYPHEN}"


def matches(file: LoraFile) -> bool:
    """Whether a key has the word that stands for a dot."""
    return any(HYPHEN in key.key for key in file.keys)


def read(file: LoraFile) -> LoadedLora:
    """Read it, dots put back."""
    keys = [replace(key, module=key.module.replace(HYPHEN, ".")) for key in file.keys]
    return Reading(file, DIALECT.name, Habits(), keys).result(pair_of)


def write(lora: LoadedLora) -> Written:
    """Write it with one rank throughout, which the loader takes as an argument: lower ranks are filled with zeros."""
    check_dotted(lora, "LongCat")
    targets = list(pairs_in(lora, "LongCat"))
    ranks = [target.rank // target.parts for target in targets]
    tensors: dict[str, Tensor] = {}
    for target in targets:
        tensors |= _spelled(f"{PREFIX}{target.module.replace('.', HYPHEN)}", target, max(ranks))
    return Written(tensors, {"format": "pt"})


def _spelled(path: str, target: Target, rank: int) -> dict[str, Tensor]:
    A, B = factors_of(target)
    n = target.parts
    r = target.rank // n
    rows = A.unflatten(0, (n, r))
    out = {f"{path}.alpha_scale": scalar(target.scaling)}
    out[f"{path}.lora_down.weight"] = F.pad(rows, (0, 0, 0, rank - r)).flatten(0, 1).contiguous()
    blocks = [F.pad(block, (0, rank - r)).contiguous() for block in _blocks(B, n)]
    names = ["lora_up"] if n == 1 else [f"lora_up.blocks.{j}" for j in range(n)]
    return out | {f"{path}.{name}.weight": block for name, block in zip(names, blocks, strict=True)}


def _blocks(B: Tensor, n: int) -> list[Tensor]:
    """Return the diagonal blocks of B.

    Shapes: B [O, n R] to n blocks [O / n, R].
    """
    return [part.chunk(n, 1)[j] for j, part in enumerate(B.chunk(n, 0))]


DIALECT = Dialect(
    "longcat", f"lora{HYPHEN}<module>.lora_down.weight, .lora_up.weight or .lora_up.blocks.<j>.weight",
    ".alpha_scale tensor, alpha / r already", matches, read, write,
)  # fmt: skip
