"""Fashion-MNIST, ViT-S with patches of 4 pixels, RandAugment, averaged weights; for a GPU.

python -m examples.classification --config fashion_mnist_vit
"""

from examples.classification.config import Config

config = Config(
    dataset="fashion_mnist",
    method=("sgd", "sam", "budgeted_sam"),
    seeds=(0, 1, 2),
    model="vit_s",
    dtype="bfloat16",
    augment=("randaugment", "crop", "mirror"),
    epochs=100,
    batch_size=512,
    accumulate=2,
    warmup_epochs=10,
    weight_decay=1e-4,
    label_smoothing=0.1,
    ema_decay=0.999,
    rho=0.05,
)
