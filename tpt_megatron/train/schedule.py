"""Learning rate by step: warm-up, then constant or cosine."""

import math

from tpt_megatron.config.schema import OptimizerConfig


def learning_rate(step: int, total_steps: int, settings: OptimizerConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up; the cosine ends at min_learning_rate."""
    peak, floor = settings.learning_rate, settings.min_learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return peak
    span = max(total_steps - settings.warmup_steps, 1)
    progress = min((step - settings.warmup_steps) / span, 1.0)
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))
