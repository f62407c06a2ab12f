"""What each number means, in a sentence: shown beside it."""

from __future__ import annotations

MODES: dict[str, tuple[str, str]] = {
    "verdict": ("Verdict", "The class of each tap: what the numbers together say."),
    "logic_error": (
        "Logic error",
        "Distance of the two float64 results, relative. Implementations of one function agree to about 1e-15.",
    ),
    "rounding_excess": (
        "Rounding excess",
        "The native's own rounding error over the reference's, in the projection that shows it best. 1 is as precise.",
    ),
    "impact": (
        "Impact",
        "What this tap's difference alone does to the model's output, in units of the reference's own rounding noise. "
        "Computed where something differs.",
    ),
    "rel_l2": ("Relative L2", "Norm of the difference of the values as computed, over the norm of the reference's."),
    "lora_effect": (
        "LoRA effect",
        "How far the LoRA moves the native over how far it moves the reference. 1 is alike, 0 was not applied.",
    ),
}
"""What the heat map shows: a name of the number, its label, its meaning."""

NUMBERS: dict[str, tuple[str, str]] = {
    "logic_error": MODES["logic_error"],
    "logic_error_of_constants": (
        "Logic error before tables",
        "What the logic error was before float32 tables were compared as both sides store them.",
    ),
    "impact": MODES["impact"],
    "drift": ("Drift", "Relative distance at this tap where both models run freely: errors of earlier taps included."),
    "excess_after_rounding_both": (
        "Excess after rounding both",
        "Total rounding excess once both values are rounded to the coarser of their dtypes.",
    ),
    "reference_noise": ("Reference's noise", "The reference's own rounding error, relative to its float64 result."),
    "coherence": (
        "Coherence",
        "Structure of the reference's own rounding: 1 is honest noise; above the limit nothing can be told from it.",
    ),
}

PROJECTIONS: dict[str, str] = {
    "identity": "All of the rounding error.",
    "channel_mean": "Mean over the tokens of each channel: a rounded shift common to all tokens shows here.",
    "channel_slope": "Slope of each channel's error against its value: a rounded scale or norm weight shows here.",
    "token_mean": "Mean over the channels of each token: a rounded mean or inverse deviation shows here.",
    "head_mean": "Mean over each attention head: one head's softmax or norm shows here.",
    "slope_on": "Slope of the error against an earlier tap's value: a rounded gate of that branch shows here.",
}

METRICS: dict[str, str] = {
    "max_abs": "Largest difference of any element.",
    "mean_abs": "Mean magnitude of the difference.",
    "mse": "Mean of the squared difference.",
    "rel_l2": "Norm of the difference over the norm of the reference's value.",
    "cosine": "Direction: 1 is the same.",
    "one_minus_cosine": "The same, without cancellation.",
    "psnr": "Peak signal to noise, in dB.",
    "pearson": "Correlation about the means.",
    "rms_ulp": "Difference in units of the last place; one rounding gives 0.29.",
    "smallest_atol": "Smallest atol that would pass.",
    "smallest_rtol": "Smallest rtol that would pass.",
    "smallest_tol": "Smallest value that would pass as atol and rtol together.",
    "expected_norm": "Norm of the reference's value.",
    "numel": "Elements compared.",
    "expected_nan": "NaN in the reference.", "expected_inf": "Inf in the reference.",
    "actual_nan": "NaN in the native.", "actual_inf": "Inf in the native.",
}  # fmt: skip

LORA: dict[str, str] = {
    "base": "reference against native, LoRA off",
    "lora": "reference against native, LoRA on",
    "on_reference": "the reference, LoRA off against on",
    "on_native": "the native, LoRA off against on",
    "ratio": "size of the effect on the native over that on the reference",
    "alignment": "cosine of the two effects: 1 is the same direction",
}
