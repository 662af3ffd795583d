"""Fashion-MNIST, ViT-S with patches of 4 pixels, AdamW, RandAugment, averaged weights; for a GPU.

AdamW, since transformers train badly with SGD; its learning rate and weight decay are DeiT's (arXiv
2012.12877) for a batch of 512. Not tuned.

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
    optimizer="adamw",
    learning_rate=5e-4,
    weight_decay=0.05,
    label_smoothing=0.1,
    ema_decay=0.999,
    rho=0.05,
)
