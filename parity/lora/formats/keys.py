r"""What the keys of LoRA files say: `prefix`, module, and the role of the tensor, from the suffix.

>>> parsed("transformer.blocks.0.to_q.lora_A.weight").module
'blocks.0.to_q'
>>> parsed("lora_unet_blocks_0_q.lora_down.1.weight").part
1
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

HYPHEN = "___lorahyphen___"
DOTTED_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer_2.", "transformer.", "unet.",
    "text_encoder_2.", "text_encoder.", "pipe.dit.", "net_ema.", "net.",
)  # fmt: skip
UNDERSCORED_PREFIXES = (
    f"lora{HYPHEN}", "lora_unet__", "lora_unet_", "lora_transformer_", "lora_prior_unet_", "lora_te1_", "lora_te2_",
    "lora_te_", "Hunyuan_video_I2V_lora_", "lycoris_",
)  # fmt: skip
OTHER = "other."
"""Stands for the prefix of keys without the one the caller named."""
COMPONENTS = ("text_encoder_2.", "text_encoder.", "lora_te1_", "lora_te2_", "lora_te_", "transformer_2.", "net_ema.")
"""Prefixes of what stands beside the model a file is about."""

_NAME = r"(?P<name>[A-Za-z0-9_\-]+)"
_PART = r"(?P<part>\d+)"
SUFFIXES: tuple[tuple[str, str, str], ...] = (
    (rf"\.lora_up\.blocks\.{_PART}\.weight", "B", "blocks"),
    (rf"\.lora_down\.{_PART}\.weight", "A", "parts"),
    (rf"\.lora_up\.{_PART}\.weight", "B", "parts"),
    (r"\.lora_down\.weight", "A", "down_up"),
    (r"\.lora_up\.weight", "B", "down_up"),
    (r"\.lora_mid\.weight", "mid", "down_up"),
    (r"\.lora_A\.weight", "A", "weight"),
    (r"\.lora_B\.weight", "B", "weight"),
    (r"\.lora_A", "A", "bare"),
    (r"\.lora_B", "B", "bare"),
    (r"\.lora_B\.bias", "lora_bias", "weight"),
    (rf"\.lora_A\.{_NAME}\.weight", "A", "named"),
    (rf"\.lora_B\.{_NAME}\.weight", "B", "named"),
    (rf"\.lora_B\.{_NAME}\.bias", "lora_bias", "named"),
    (rf"\.lora_magnitude_vector(?:\.(?!weight$){_NAME})?(?:\.weight)?", "magnitude", "weight"),
    (r"\.dora_scale", "magnitude", "dora_scale"),
    (rf"\.lora_embedding_A(?:\.(?!weight$){_NAME})?(?:\.weight)?", "A", "embedding"),
    (rf"\.lora_embedding_B(?:\.(?!weight$){_NAME})?(?:\.weight)?", "B", "embedding"),
    (r"\.processor\.(?P<tensor>(?:qkv|proj)_lora\d*)\.down\.weight", "A", "xlabs"),
    (r"\.processor\.(?P<tensor>(?:qkv|proj)_lora\d*)\.up\.weight", "B", "xlabs"),
    (r"(?:\.processor)?\.(?P<old>to_(?:q|k|v|out))_lora\.down\.weight", "A", "old"),
    (r"(?:\.processor)?\.(?P<old>to_(?:q|k|v|out))_lora\.up\.weight", "B", "old"),
    (r"\.(?:lora|lora_linear_layer)\.down\.weight", "A", "old"),
    (r"\.(?:lora|lora_linear_layer)\.up\.weight", "B", "old"),
    (r"_lora\.down\.weight", "A", "old"),
    (r"_lora\.up\.weight", "B", "old"),
    (r"\.lora_down", "A", "down_up"),
    (r"\.lora_up", "B", "down_up"),
    (r"\.alpha_scale", "alpha_scale", ""),
    (r"\.(?:lora|lora_linear_layer)\.alpha", "alpha", "old"),
    (r"\.lora_alpha", "alpha", "lora_alpha"),
    (r"\.lora_rank", "rank", ""),
    (r"\.alpha", "alpha", "alpha"),
    (r"\.hada_(?P<tensor>w1_a|w1_b|w2_a|w2_b|t1|t2)", "hada", "lycoris"),
    (r"\.lokr_(?P<tensor>w1_a|w1_b|w1|w2_a|w2_b|w2|t2)", "lokr", "lycoris"),
    (r"\.(?:oft_blocks|oft_diag|oft_[rR]\.\w+\.weight|oft_[rR]\.weight|rescale|on_input|ia3_l(?:\.\w+)?)",
     "multiplied", "lycoris"),
    (r"\.(?:a1|a2|b1|b2|bm1|bm2)\.weight", "multiplied", "glora"),
    (r"\.diff", "diff", "full"),
    (r"\.diff_b", "diff_b", "full"),
    (r"\.diff_m", "diff_m", "full"),
    (r"\.set_weight", "set_weight", "full"),
    (r"\.w_norm", "diff", "full"),
    (r"\.b_norm", "diff_b", "full"),
    (r"\.reshape_weight", "unsupported", "full"),
    (r"\.lora_[AB]\.weight[_.]scale|\.lora_(?:up|down)\.(?:weight[_.]scale|scale_weight)|\.scale_weight", "scale", ""),
    (r"\.base_layer\.(?:weight|bias)", "base_layer", ""),
)  # fmt: skip
_TABLE = ".modulation"
"""The parameter `.diff_m` is for: `blocks.0.diff_m` changes `blocks.0.modulation`."""
_SUFFIXES = tuple((re.compile(pattern + r"\Z"), role, style) for pattern, role, style in SUFFIXES)


@dataclass(frozen=True)
class Key:
    """A key taken apart: `prefix` + `module` + suffix.

    Args:
        role: what the tensor is: A, B, alpha, diff, ...; "plain" for keys without a suffix of any dialect.
        style: in whose spelling.
        part: which part of a fused layer.
        name: the adapter's, where the key has one.
        tensor: which of the dialect's tensors, where one role has many.
    """

    key: str
    prefix: str
    module: str
    role: str
    style: str
    part: int = 0
    name: str | None = None
    tensor: str = ""


def below(key: str, prefix: str | None) -> Key:
    """Take a key apart; a prefix of the caller's that none has as its own is no part of the module's name."""
    if prefix is None or prefix in (*DOTTED_PREFIXES, *UNDERSCORED_PREFIXES, ""):
        return parsed(key)
    if not key.startswith(prefix):
        other = parsed(key)
        return other if other.prefix else replace(other, prefix=OTHER)
    return replace(parsed(key.removeprefix(prefix)), key=key, prefix="")


def parsed(key: str) -> Key:
    """Take a key apart."""
    for pattern, role, style in _SUFFIXES:
        if style == "glora" and not key.startswith(UNDERSCORED_PREFIXES):
            continue  # elsewhere `a1.weight` is some layer's weight
        if (found := pattern.search(key)) and found.start():
            groups = found.groupdict()
            prefix, module = _without_prefix(key[: found.start()] + _old_name(groups.get("old")))
            module = f"{module}{_TABLE}" if role == "diff_m" and not _has_table(module) else module
            part, tensor = int(groups.get("part") or 0), groups.get("tensor") or ""
            return Key(key, prefix, module, role, style, part, groups.get("name"), tensor)
    prefix, module = _without_prefix(key)
    return Key(key, prefix, module, "plain", "")


def _has_table(module: str) -> bool:
    return module.rpartition(".")[2] == _TABLE[1:]


def _old_name(old: str | None) -> str:
    """Return the layer an attention processor's factor belongs to; `to_out` is a list whose first entry is linear."""
    return "" if old is None else ".to_out.0" if old == "to_out" else f".{old}"


def _without_prefix(path: str) -> tuple[str, str]:
    found = next((p for p in (*DOTTED_PREFIXES, *UNDERSCORED_PREFIXES) if path.startswith(p)), "")
    return found, path[len(found) :]


def underscored(key: Key) -> bool:
    """Whether the module's dots were replaced by underscores, entirely or in part."""
    if key.prefix == f"lora{HYPHEN}":
        return False  # its dots have a word of their own
    return key.prefix in UNDERSCORED_PREFIXES or ("." not in key.module and "lora_" in key.module and not key.prefix)
