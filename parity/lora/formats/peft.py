"""PEFT: `base_model.model.<module>.lora_A.weight`, settings in `adapter_config.json` beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.formats.file import Dialect, LoraFile, Written
from parity.lora.formats.keys import Key
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Group, Pair, Reading
from parity.lora.formats.scaling import METADATA
from parity.lora.formats.summary import Habits
from parity.lora.formats.writing import alpha_of, check_dotted, factors_of, pairs_in, stored
from parity.lora.loaded import Factors, LoadedLora, Target
from parity.lora.problems import warning

PREFIX = "base_model.model."
_SAVED = ".modules_to_save."


def matches(file: LoraFile) -> bool:
    """Whether a key has PEFT's prefix, or none and PEFT's suffix without an adapter name."""
    return not file.checkpoint and not file.extracted and file.claimed(_claims)


def _claims(key: Key) -> bool:
    plain = key.prefix == "" and key.style in ("weight", "embedding") and key.role in ("A", "B")
    return plain or (key.prefix == PREFIX and key.style in ("weight", "named", "embedding", "down_up", "old"))


def read(file: LoraFile) -> LoadedLora:
    """Read it; layers trained in full (`modules_to_save`, biases) replace the base's."""
    # diffusers writes a model's LoRA so, with the settings in the header
    honoured = {"sidecar", *(("header",) if METADATA in file.header else ())}
    reading = Reading(file, DIALECT.name, Habits(frozenset(honoured)), _with_saved(file))
    lora = reading.result(_transposed if _fan_in_fan_out(file) else pair_of)
    if file.sidecar is None and METADATA not in file.header:
        text = "there is no adapter_config.json beside the file: PEFT cannot load it, r and alpha are unknown"
        lora = replace(lora, problems=(*lora.problems, warning("no_config", text)))
    return lora


def _with_saved(file: LoraFile) -> Iterator[Key]:
    for key in file.keys:
        module, _, name = key.module.rpartition(".")
        if key.prefix == PREFIX and key.key.endswith(".base_layer.bias"):
            yield replace(key, role="set_bias")  # biases trained in full beside the adapter
        elif key.role == "plain" and module.endswith(".original_module"):
            yield replace(key, role="base_layer")
        elif key.role == "plain" and key.prefix == PREFIX and name in ("weight", "bias"):
            saved, _, adapter = module.partition(_SAVED)
            role = "set_weight" if name == "weight" else "set_bias"
            yield replace(key, role=role, module=saved, name=adapter or None)
        else:
            yield key


def _fan_in_fan_out(file: LoraFile) -> bool:
    return bool((file.sidecar or {}).get("fan_in_fan_out"))


def _transposed(file: LoraFile, group: Group) -> Pair | None:
    """Exchange the factors of a layer whose weight is stored [in, out]: the change is (B A)^T = A^T B^T."""
    pair = pair_of(file, group)
    if pair is None:
        return None

    def read() -> Factors:
        A, B = pair.read()
        return Factors(B.t(), A.t())

    return replace(pair, shape=(pair.shape[1], pair.shape[0]), read=read)


def write(lora: LoadedLora) -> Written:
    """Write tensors and settings; differing ranks and alphas go into the patterns."""
    check_dotted(lora, "PEFT")
    tensors: dict[str, Tensor] = {}
    held = ("magnitude", "set_weight", "set_bias", "diff_b")
    for target in pairs_in(lora, "PEFT", held, convolutions=True, embeddings=True):
        tensors |= factors_below(PREFIX, target, lora)
        for role, name in (("set_weight", "weight"), ("set_bias", "bias")):
            if role in target.extras:
                tensors[f"{PREFIX}{target.module}.{name}"] = stored(target.extras[role]())
        if "magnitude" in target.extras:
            tensors[f"{PREFIX}{target.module}.lora_magnitude_vector"] = magnitude_by_output(target.module, lora)
    return Written(tensors, {"format": "pt"}, {"peft_type": "LORA", **settings(lora)})


def factors_below(prefix: str, target: Target, lora: LoadedLora) -> dict[str, Tensor]:
    """Return A, B and B's bias; PEFT has a bias on all of an adapter's layers or on none.

    Raises:
        LoraFileError: a bias is changed without A and B, or with a scaling of 0.
    """
    if target.factors is None or ("diff_b" in target.extras and not target.scaling):
        if "diff_b" in target.extras:
            raise LoraFileError("cannot_hold", f"PEFT cannot hold the bias of {target.module} without a change beside")
        return {}
    path = f"{prefix}{target.module}"
    A, B = factors_of(target)
    if target.embedding:
        return {f"{path}.lora_embedding_A": B.t().contiguous(), f"{path}.lora_embedding_B": A.t().contiguous()}
    out = {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B}
    if _has_bias(lora):
        own = target.extras.get("diff_b")
        out[f"{path}.lora_B.bias"] = stored(own().flatten() / target.scaling) if own else B.new_zeros(len(B))
    return out


def _has_bias(lora: LoadedLora) -> bool:
    return any("diff_b" in target.extras for target in lora.targets.values())


def magnitude_by_output(module: str, lora: LoadedLora) -> Any:
    """Return the magnitudes of a weight-decomposed LoRA as one number for each output, of an embedding's width.

    Raises:
        LoraFileError: they are one for each input.
    """
    target = lora.targets[module]
    value = target.extras["magnitude"]()
    if target.embedding and value.numel() == target.shape[1]:
        return stored(value.flatten())
    if value.numel() != target.shape[0] or (value.ndim == 2 and value.shape[0] == 1 != target.shape[0]):
        raise LoraFileError("cannot_hold", f"{module}: magnitudes {tuple(value.shape)} are not one for each output")
    return stored(value.reshape(1, -1, *(1 for _ in target.kernel)) if target.kernel else value.flatten())


def settings(lora: LoadedLora) -> dict[str, Any]:
    """Return PEFT's settings: the commonest r and lora_alpha, patterns for the others."""
    pairs = {t.module: alpha_of(t) for t in lora.targets.values() if t.factors is not None}
    if not pairs:
        raise LoraFileError("cannot_hold", "no target has A and B")
    (r, alpha), _ = Counter(pairs.values()).most_common(1)[0]
    saved = [t.module for t in lora.targets.values() if {"set_weight", "set_bias"} & set(t.extras)]
    return {
        "r": r, "lora_alpha": alpha if alpha % 1 else int(alpha), "target_modules": list(pairs),
        "rank_pattern": {f"^{_escaped(m)}": own for m, (own, _) in pairs.items() if own != r},
        "alpha_pattern": {f"^{_escaped(m)}": own for m, (_, own) in pairs.items() if own != alpha},
        "use_rslora": False, "use_dora": any("magnitude" in t.extras for t in lora.targets.values()),
        "lora_bias": _has_bias(lora), "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "modules_to_save": saved or None,
    }  # fmt: skip


def _escaped(module: str) -> str:
    return module.replace(".", r"\.")


DIALECT = Dialect(
    "peft", "base_model.model.<module>.lora_A.weight, .lora_B.weight", "lora_alpha / r in adapter_config.json",
    matches, read, write,
)  # fmt: skip
