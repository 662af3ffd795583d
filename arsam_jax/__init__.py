"""Sharpness-aware training for JAX: ARSAM and its family as optax transformations."""

from arsam_jax import ascent, correction, probe, sampling
from arsam_jax.alias import arsam, sam
from arsam_jax.core import (
    Metrics,
    SharpnessAwareState,
    get_metrics,
    get_state,
    sharpness_aware,
)

__version__ = "0.1.0"

__all__ = [
    "Metrics",
    "SharpnessAwareState",
    "arsam",
    "ascent",
    "correction",
    "get_metrics",
    "get_state",
    "probe",
    "sam",
    "sampling",
    "sharpness_aware",
]
