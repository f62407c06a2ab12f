"""What the names in two models have in common, in the field's vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

_VOCABULARY = {
    "q": "q query wq", "k": "k key wk", "v": "v value wv", "out": "o out wo output",
    "qkv": "qkv wqkv", "kv": "kv wkv", "qk": "qk",
    "time": "t time timestep timesteps temb", "text": "y text txt caption context prompt encoder add added",
    "patch": "x patch patchify latent latents video", "embed": "embed embedder embedding embeddings emb embedders",
    "mod": "mod modulation modulate adaln ada adanorm shift scale gate table msa", "final": "final head last",
    "norm": "norm ln layernorm rms rmsnorm norms", "ffn": "ffn mlp ff feedforward feed", "self": "self",
    "attn": "attn attention atten", "cross": "cross crs xattn", "block": "block blocks layer layers transformer",
    "weight": "weight gamma kernel", "bias": "bias beta", "guidance": "guidance", "up": "up", "down": "down",
}  # fmt: skip
_CANONICAL = {word: canonical for canonical, words in _VOCABULARY.items() for word in words.split()}
_FILLER = {
    "to", "linear", "proj", "projection", "projector", "module", "net", "model", "the", "in", "of", "layer", "fc",
    "img",
}  # fmt: skip
_PHRASES = {
    "attn1": "self_attn", "attn2": "cross_attn", "crossattn": "cross_attn", "selfattn": "self_attn",
    "xattn": "cross_attn", "in_proj": "qkv", "proj_out": "final_out", "img_in": "patch_in",
}  # fmt: skip
_KEPT = ("w1", "w2", "w3")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
PARTS = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "qk": ("q", "k")}
"""What fused projections are made of, in the order of their rows."""


@cache
def words_of(segment: str) -> tuple[str, ...]:
    """Return a name's words in the field's vocabulary, fillers and numbers left out where other words remain.

    >>> words_of("cross_attn"), words_of("attn2"), words_of("to_q"), words_of("adaLN_modulation")
    (('cross', 'attn'), ('cross', 'attn'), ('q',), ('mod',))
    """
    text = segment.replace("adaLN", "adaln")
    for phrase, meaning in _PHRASES.items():
        text = re.sub(rf"(?<![A-Za-z]){phrase}(?![A-Za-z0-9])", meaning, text)
    lower = [word.lower() for part in text.split("_") for word in ([part] if part in _KEPT else _WORD.findall(part))]
    found = [_CANONICAL.get(word, word) for word in lower if word not in _FILLER and not word.isdigit()]
    if not found and "proj" in lower:
        found = ["out"]
    if "attn" in found and not {"self", "cross", "joint"} & set(found):
        found.insert(0, "self")
    return tuple(dict.fromkeys(found))


@cache
def weights_of(path: str) -> Counter[str]:
    """Return the words of a dotted path, those of its end counted most."""
    found: Counter[str] = Counter()
    segments = [segment for segment in path.split(".") if words_of(segment)]
    for distance, segment in enumerate(reversed(segments)):
        for word in words_of(segment):
            found[word] = max(found[word], (4, 3, 2, 1)[min(distance, 3)])
    if "cross" in found and "self" in found:
        del found["self"]
    return found


def similarity(one: str, other: str) -> float:
    """Say how alike two dotted names are, from 0 to 1.

    >>> similarity("blocks.{}.self_attn.q", "blocks.{}.attn1.to_q"), similarity("head", "patch")
    (1.0, 0.0)
    """
    if one == other:
        return 1.0
    a, b = weights_of(one), weights_of(other)
    total = sum((a | b).values())
    return sum((a & b).values()) / total if total else 0.0


def sort_of(leaf: str) -> str:
    """Return "weight", "bias", or "" for another tensor (a table)."""
    words = words_of(leaf)
    return next((sort for sort in ("bias", "weight") if sort in words), "")


def fused_parts(path: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the word for a fused projection at the end of a name, and its parts; None where there is none."""
    for segment in reversed(path.split(".")):
        words = words_of(segment)
        for word, parts in PARTS.items():
            if word in words or (set(parts) <= set(words) and len(words) == len(parts)):
                return word, parts
        if words:
            return None
    return None
