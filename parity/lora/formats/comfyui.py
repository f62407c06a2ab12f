"""ComfyUI and the Wan community: `diffusion_model.<module>.lora_A.weight` or `lora_down`, and changes in full.

`.diff` is added to the weight, `.diff_b` to the bias, `.diff_m` to a parameter of that name; `.set_weight` replaces.
"""

from __future__ import annotations

from torch import Tensor

from parity.lora.formats.file import FULL, Dialect, LoraFile, Written
from parity.lora.formats.keys import UNDERSCORED_PREFIXES, Key
from parity.lora.formats.kohya import spelled
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.summary import Habits
from parity.lora.formats.writing import check_dotted, folded, pairs_in, scalar, stored
from parity.lora.loaded import LoadedLora, Target

PREFIX = "diffusion_model."
_PREFIXES = (PREFIX, "model.diffusion_model.")


def matches(file: LoraFile) -> bool:
    """Whether a key has the prefix of a diffusion model, has down and up without one, or holds a change in full."""
    return not file.extracted and not file.checkpoint and file.claimed(_claims)


def _claims(key: Key) -> bool:
    if key.prefix in _PREFIXES:
        return key.style in ("weight", "down_up", "full", "parts", "named", "old")
    dotted = key.prefix not in UNDERSCORED_PREFIXES
    return (key.role in FULL and dotted) or (key.prefix == "" and key.style == "down_up" and _is_dotted(key))


def _is_dotted(key: Key) -> bool:
    return "." in key.module or "lora_" not in key.module


def read(file: LoraFile) -> LoadedLora:
    """Read it; without alpha the scaling is 1."""
    return Reading(file, DIALECT.name, Habits()).result(pair_of)


def write(lora: LoadedLora) -> Written:
    """Write A and B with alpha; where it costs no bit alpha equals r, so that loaders which drop it are right too."""
    check_dotted(lora, "ComfyUI")
    tensors: dict[str, Tensor] = {}
    for target in pairs_in(lora, "ComfyUI", ("magnitude", "diff", "diff_b", "diff_m", "set_weight"), True, True):
        tensors |= _spelled(f"{PREFIX}{target.module}", target)
    return Written(tensors, {"format": "pt"})


def _spelled(path: str, target: Target) -> dict[str, Tensor]:
    held = {role: stored(target.extras[role]()) for role in FULL if role in target.extras}
    whole = path.removesuffix(".modulation")  # `.diff_m` says itself which parameter it is for
    out = {f"{whole if role == 'diff_m' else path}.{role}": value for role, value in held.items()}
    if target.factors is None:
        return out
    if target.kernel or "magnitude" in target.extras:
        return out | spelled(path, target)
    A, B, alpha = folded(target)
    return out | {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B, f"{path}.alpha": scalar(alpha)}


DIALECT = Dialect(
    "comfyui", "diffusion_model.<module>.lora_A.weight or .lora_down.weight; .diff, .diff_b, .diff_m, .set_weight",
    ".alpha tensor, else scaling 1", matches, read, write,
)  # fmt: skip
