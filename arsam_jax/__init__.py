"""Sharpness-aware training for JAX: ARSAM and its family as optax transformations."""

from arsam_jax import ascent, correction, probe, sampling, sparse, trajectory
from arsam_jax.alias import (
    ae_sam,
    arsam,
    asam,
    budgeted_sam,
    esam,
    final_phase_sam,
    friendly_sam,
    gradient_norm_penalty,
    gsam,
    looksam,
    m_sam,
    momentum_sam,
    multi_step_sam,
    rw_sam,
    sam,
    sam_every_k,
    sparse_sam,
    usam,
)
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
    "ae_sam",
    "arsam",
    "asam",
    "ascent",
    "budgeted_sam",
    "correction",
    "esam",
    "final_phase_sam",
    "friendly_sam",
    "get_metrics",
    "get_state",
    "gradient_norm_penalty",
    "gsam",
    "looksam",
    "m_sam",
    "momentum_sam",
    "multi_step_sam",
    "probe",
    "rw_sam",
    "sam",
    "sam_every_k",
    "sampling",
    "sharpness_aware",
    "sparse",
    "sparse_sam",
    "trajectory",
    "usam",
]
