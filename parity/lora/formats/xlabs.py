"""xlabs: `double_blocks.0.processor.qkv_lora1.down.weight`, factors on an attention's processor, for Flux.

The first of the two belong to the image's attention, the second to the text's. In single blocks the output's factors
act on what the layer gives, not on what it takes: that is no change of a weight, and refused with the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from parity.lora.formats.file import Dialect, LoraFile
from parity.lora.formats.keys import Key
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.summary import Habits
from parity.lora.loaded import LoadedLora
from parity.lora.problems import error, some

_LAYERS = {"qkv_lora1": "img_attn.qkv", "qkv_lora2": "txt_attn.qkv", "proj_lora1": "img_attn.proj",
           "proj_lora2": "txt_attn.proj"}  # fmt: skip


def matches(file: LoraFile) -> bool:
    """Whether factors hang on an attention's processor."""
    return file.claimed(lambda key: key.style == "xlabs")


def read(file: LoraFile) -> LoadedLora:
    """Read the factors of double blocks by the original's names of layers."""
    lora = Reading(file, DIALECT.name, Habits(), _named(file)).result(pair_of)
    single = [key.key for key in file.keys if key.style == "xlabs" and key.tensor not in _LAYERS]
    if not single:
        return lora
    text = f"{len(single)} keys are of single blocks, whose factors are no change of a weight: {some(single)}"
    return replace(lora, problems=(*lora.problems, error("unsupported_kind", text)))


def _named(file: LoraFile) -> Iterator[Key]:
    for key in file.keys:
        if key.style != "xlabs":
            yield key
        elif key.tensor in _LAYERS:
            yield replace(key, module=f"{key.module}.{_LAYERS[key.tensor]}")
        else:
            yield replace(key, role="multiplied")


DIALECT = Dialect(
    "xlabs", "<block>.processor.qkv_lora1.down.weight", "none: scaling 1", matches, read,
)  # fmt: skip
