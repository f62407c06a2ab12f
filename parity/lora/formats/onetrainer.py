"""OneTrainer: `lora_transformer_<underscored>.lora_down.weight`, or `transformer.<module>.lora_down.weight`."""

from __future__ import annotations

from parity.lora.formats.file import Dialect, LoraFile
from parity.lora.formats.keys import Key
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.summary import Habits
from parity.lora.loaded import LoadedLora

_DOTTED = ("transformer.", "transformer_2.", "unet.", "text_encoder.", "text_encoder_2.")


def matches(file: LoraFile) -> bool:
    """Whether a key joins a component's name with down and up."""
    return file.claimed(_claims)


def _claims(key: Key) -> bool:
    legacy = key.prefix == "lora_transformer_" and key.style in ("down_up", "parts", "weight")
    return legacy or (key.prefix in _DOTTED and key.style in ("down_up", "parts"))


def read(file: LoraFile) -> LoadedLora:
    """Read it."""
    return Reading(file, DIALECT.name, Habits(zero_is_rank=True)).result(pair_of)


DIALECT = Dialect(
    "onetrainer", "lora_transformer_<module with _ for .>.lora_down.weight, transformer.<module>.lora_down.weight",
    ".alpha tensor, alpha / r", matches, read,
)  # fmt: skip
