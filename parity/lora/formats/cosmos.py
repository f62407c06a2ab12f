"""Cosmos-Predict2: a whole checkpoint, `net.` and `net_ema.`, with `.base_layer.` and LoRA beside it; alpha is nowhere.

`adaln_modulation` there is part of the architecture, not an adapter.
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

_NETS = ("net.", "net_ema.")


def matches(file: LoraFile) -> bool:
    """Whether LoRA lies inside a model's checkpoint."""
    return file.claimed(lambda key: _claims(key, file.checkpoint))


def _claims(key: Key, checkpoint: bool) -> bool:
    return key.role in ("A", "B") and (checkpoint or (key.prefix in _NETS and key.style in ("named", "weight")))


def read(file: LoraFile) -> LoadedLora:
    """Read the adapter and leave the model; `net.` unless the caller asks for `net_ema.`."""
    return Reading(file, DIALECT.name, Habits(), _without_model(file)).result(pair_of)


def _without_model(file: LoraFile) -> Iterator[Key]:
    """Call the model's own tensors known."""
    for key in file.keys:
        yield replace(key, role="base_layer") if key.role == "plain" else key


DIALECT = Dialect(
    "cosmos", "net.<module>.lora_A.default.weight beside net.<module>.base_layer.weight",
    "none: --lora-alpha of the training", matches, read,
)  # fmt: skip
