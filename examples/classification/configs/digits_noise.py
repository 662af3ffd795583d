"""Handwritten digits with wrong labels: a panel of docs/label_noise.md, half a minute a rate.

python -m examples.classification --config digits_noise --label-noise 0.6 --name digits60

Learning rate, weight decay and ρ are SAM's best, α and the segment length ARSAM's best at these, of
benchmarks/label_noise: 7 and then 6 settings at 40 % noise, seeds 100 and 101, accuracy on a
fifth of the training set that is held out with clean labels (benchmarks/results/label_noise has
all). The methods share all settings. SGD alone does best there, of the same 7, at
--learning-rate 0.013 --weight-decay 0.0049.
"""

from examples.classification.config import Config

config = Config(
    dataset="digits",
    method=("sgd", "sam", "arsam", "arsam_a", "sam_every_k", "budgeted_sam"),
    seeds=(0, 1, 2, 3, 4),
    label_noise=0.4,
    epochs=20,
    batch_size=32,
    learning_rate=0.08,
    weight_decay=4.8e-4,
    rho=0.35,
    alpha=0.8,
    segment_length=4,
)
