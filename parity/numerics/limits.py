"""Every limit a verdict rests on, with its reason. One place, versioned: a change of any number is a new version."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

VERSION = 1


@dataclass(frozen=True)
class Limits:
    """The limits of verdicts.

    Attributes:
        logic_error: two implementations of one function agree to about 1e-15 in float64 whatever kernels they use;
            1e-12 leaves three orders for long reductions and sharp attention. With a float32 shadow 1e-5.
        margin: a port may be this much less (or more) precise before it counts, per tap.
        margin_attention: attention kernels that round probabilities differ by up to 1.33 with sharp attention.
        margin_pooled, margin_pooled_attention: the same for the mean over blocks of a kind.
        fine: a reference that rounds less than this (relative, 1/32 of a bfloat16 rounding) computes in float32 there.
        margin_fine: its margin: the order of accumulation alone changes a float32 sum's error by up to a factor of two,
            while a down-cast to 16 bits changes it by thousands; so no power is needed either.
        z: standard errors beyond the margin; 4.27 is 1e-5 per one-sided test, measured at 5e-5 for heavy tails.
        z_power: further standard errors for 99 % power, used to say where the method is blind.
        least_components: projections of fewer components are not tested (the whole residual is): the log ratio of a
            handful of squares is heavy-tailed, and benign kernels reached a hundredfold with four.
        strong: a ratio of total rounding that one tap alone may turn red for; benign kernels reach 1.33.
        coherence: above it the reference's own rounding is as structured as a fault (nearly equal tokens): no verdict.
        lost_island_tokens: T0 of rho^2 = 1 + T/T0 for the hardest island (FP32 AdaLN seen at the ffn).
        felt: impact from which a difference raises the reference's own output noise by more than `margin`:
            sqrt((1 + margin)^2 - 1).
        excluded: share of excluded or untrusted rows above which a tap is not judged.
        implausible: a residual this many times the twins' cannot come from rounding: the shadow is not trusted.
        island_rows: fewer rows than this share of the token count: the tap is an island of its own, judged whole.
    """

    logic_error: float = 1e-12
    margin: float = 0.10
    margin_attention: float = 0.35
    fine: float = 2.0**-14
    margin_fine: float = 1.0
    margin_pooled: float = 0.05
    margin_pooled_attention: float = 0.15
    z: float = 4.27
    z_power: float = 2.33
    least_components: int = 16
    strong: float = 2.0
    coherence: float = 3.0
    lost_island_tokens: float = 1015.0
    felt: float = math.sqrt(1.1**2 - 1)
    excluded: float = 0.5
    implausible: float = 30.0
    island_rows: float = 0.5
    false_alarm_per_test: float = 5e-5


def limits_for(shadow_dtype: torch.dtype) -> Limits:
    """Return the limits of a shadow dtype: a float32 shadow sees logic to 1e-5 only."""
    return Limits() if shadow_dtype == torch.float64 else Limits(logic_error=1e-5)
