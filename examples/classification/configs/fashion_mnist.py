"""Fashion-MNIST, a small CNN, five epochs; not tuned.

python -m examples.classification --config fashion_mnist
"""

from examples.classification.config import Config

config = Config(
    dataset="fashion_mnist", seeds=(0,), width=8, epochs=5, alpha=0.8, segment_length=10
)
