"""DiffSynth-Studio: `<module>.lora_A.default.weight` without a prefix, or below `pipe.dit.`."""

from __future__ import annotations

from parity.lora.formats.file import Dialect, LoraFile
from parity.lora.formats.keys import Key
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.summary import Habits
from parity.lora.loaded import LoadedLora

_PIPE = "pipe.dit."


def matches(file: LoraFile) -> bool:
    """Whether keys carry an adapter's name and no prefix, outside of a whole checkpoint."""
    return not file.checkpoint and not file.extracted and file.claimed(_claims)


def _claims(key: Key) -> bool:
    return (key.prefix == "" and key.style == "named") or (
        key.prefix == _PIPE and key.style in ("named", "weight", "down_up", "old")
    )


def read(file: LoraFile) -> LoadedLora:
    """Read it; alpha is nowhere, and equals r unless the training said otherwise."""
    return Reading(file, DIALECT.name, Habits()).result(pair_of)


DIALECT = Dialect(
    "diffsynth", "<module>.lora_A.default.weight, or below pipe.dit.", "none: the training's own, alpha = r by default",
    matches, read,
)  # fmt: skip
