"""1,000 Fashion-MNIST images of 14×14 with wrong labels: a panel of docs/label_noise.md.

python -m examples.classification --config fashion_mnist_noise --label-noise 0.6 --name noise60

Two minutes a rate on two cores. Learning rate, weight decay and ρ are SAM's best, α and the segment
length ARSAM's best at these, of benchmarks/label_noise: 7 and then 6 settings at 40 % noise,
seeds 100 and 101, accuracy on 12,000 images held out with clean labels
(benchmarks/results/label_noise has all). The methods share all settings. SGD
alone does best there, of the same 7, at --learning-rate 0.0079 --weight-decay 0.0019.
"""

from examples.classification.config import Config

config = Config(
    dataset="fashion_mnist",
    method=("sgd", "sam", "arsam", "arsam_a", "sam_every_k", "budgeted_sam"),
    seeds=(0, 1, 2, 3, 4),
    train_examples=1000,
    image_size=14,
    label_noise=0.4,
    width=8,
    epochs=24,
    batch_size=32,
    learning_rate=0.08,
    weight_decay=4.8e-4,
    rho=0.35,
    alpha=0.2,
    segment_length=4,
    evaluate_every=8,
)
