"""diffusers: `transformer.<module>.lora_A.weight`, settings in the header, and older spellings of the factors."""

from __future__ import annotations

import json

from torch import Tensor

from parity.lora.formats import peft
from parity.lora.formats.file import Dialect, LoraFile, Written
from parity.lora.formats.keys import Key
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.scaling import METADATA
from parity.lora.formats.summary import Habits
from parity.lora.formats.writing import check_dotted, pairs_in
from parity.lora.loaded import LoadedLora

PREFIXES = ("transformer.", "transformer_2.", "unet.", "text_encoder.", "text_encoder_2.")


def matches(file: LoraFile) -> bool:
    """Whether a key names a component of a pipeline, or has one of the older spellings."""
    return not file.extracted and not file.checkpoint and file.claimed(_claims)


def _claims(key: Key) -> bool:
    component = key.prefix in PREFIXES and key.style in ("weight", "named", "embedding")
    return component or (key.style == "old" and key.role in ("A", "B") and key.prefix in (*PREFIXES, ""))


def read(file: LoraFile) -> LoadedLora:
    """Read it; a plain alpha in the header counts, though diffusers does not look at it."""
    origins = {"tensor", "assumed", *(("header",) if METADATA in file.header else ())}
    return Reading(file, DIALECT.name, Habits(frozenset(origins))).result(pair_of)


def write(lora: LoadedLora) -> Written:
    """Write tensors and, in the header, PEFT's settings for the transformer."""
    check_dotted(lora, "diffusers")
    tensors: dict[str, Tensor] = {}
    for target in pairs_in(lora, "diffusers", ("diff_b",), convolutions=True, embeddings=True):
        tensors |= peft.factors_below("transformer.", target, lora)
    named = {f"transformer.{key}": value for key, value in peft.settings(lora).items()}
    return Written(tensors, {"format": "pt", METADATA: json.dumps(named)})


DIALECT = Dialect(
    "diffusers", "transformer.<module>.lora_A.weight, older .lora.down.weight",
    "none (alpha = r), or lora_adapter_metadata in the header", matches, read, write,
)  # fmt: skip
