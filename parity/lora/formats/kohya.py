"""kohya and musubi-tuner: `lora_unet_<module with underscores>.lora_down.weight`, `.alpha`, parts of fused layers."""

from __future__ import annotations

from torch import Tensor

from parity.lora.formats.file import Dialect, LoraFile, Written
from parity.lora.formats.keys import DOTTED_PREFIXES, HYPHEN, Key
from parity.lora.formats.names import flattened
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.summary import Habits
from parity.lora.formats.writing import alpha_of, check_unambiguous, factors_of, pairs_in, scalar, stored
from parity.lora.loaded import LoadedLora, Target

PREFIX = "lora_unet_"
_STYLES = ("down_up", "parts", "weight", "full")
_OTHERS = (f"lora{HYPHEN}", "lora_transformer_")


def matches(file: LoraFile) -> bool:
    """Whether a key has underscores for dots; the set of prefixes is open-ended."""
    return file.claimed(_claims)


def _claims(key: Key) -> bool:
    if key.style not in _STYLES or key.prefix in (*DOTTED_PREFIXES, *_OTHERS):
        return False
    known = key.prefix not in ("", *_OTHERS)
    return known or ("." not in key.module and key.style in ("down_up", "parts") and "lora_" in key.module)


def read(file: LoraFile) -> LoadedLora:
    """Read it; alpha 0 or none means alpha = r."""
    return Reading(file, DIALECT.name, Habits(zero_is_rank=True)).result(pair_of)


def write(lora: LoadedLora) -> Written:
    """Write every target with an alpha of its own."""
    check_unambiguous(lora, "kohya")
    tensors: dict[str, Tensor] = {}
    for target in pairs_in(lora, "kohya", ("magnitude",), convolutions=True, embeddings=True):
        tensors |= spelled(f"{PREFIX}{flattened(target.module)}", target)
    return Written(tensors, {"format": "pt"})


def spelled(path: str, target: Target) -> dict[str, Tensor]:
    """Return a target's tensors below a path."""
    A, B = factors_of(target)
    out = {f"{path}.lora_down.weight": A, f"{path}.lora_up.weight": B, f"{path}.alpha": scalar(alpha_of(target)[1])}
    if "magnitude" in target.extras:
        value = target.extras["magnitude"]()
        out[f"{path}.dora_scale"] = stored(value.unsqueeze(1) if value.ndim == 1 else value)
    return out


DIALECT = Dialect(
    "kohya", "lora_unet_<module with _ for .>.lora_down.weight, .lora_up.weight", ".alpha tensor, alpha / r",
    matches, read, write,
)  # fmt: skip
