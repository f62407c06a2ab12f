"""Numbers only: metrics, projections of rounding residuals, limits and verdicts."""
