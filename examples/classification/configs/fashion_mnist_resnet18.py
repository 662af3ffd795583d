"""Fashion-MNIST, ResNet-18, the methods at equal settings; for a GPU.

python -m examples.classification --config fashion_mnist_resnet18
"""

from examples.classification.config import Config

config = Config(
    dataset="fashion_mnist",
    method=(
        *("sgd", "sam", "sam_every_k", "looksam", "ae_sam"),
        *("arsam", "budgeted_sam", "budgeted_m_sam"),
    ),
    seeds=(0, 1, 2),
    model="resnet18",
    dtype="bfloat16",
    augment=("crop", "mirror"),
    epochs=30,
    rho=0.1,
    alpha=0.8,
)
