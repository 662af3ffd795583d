"""What the rows of the tables of arXiv 2510.03763 (ARSAM) have in common.

200 epochs, batches of 128, cosine decay, three seeds, M = 50 and, on CIFAR, cutout are the paper's,
and so is α: 0.2, 0.4 and 0.8, and 0.3 and 0.4 with label noise. It does not say the learning rate,
the weight decay or ρ. Here they are 0.1, 5e-4, and ρ as SAM's paper has it (arXiv 2010.01412): 0.05
on CIFAR-10 and 0.1 on the others. Crops and mirror images are the custom with all three sets.
"""

from typing import Any

from examples.classification.config import Config, Published

__all__ = ["Published", "cifar10", "cifar100", "tiny_imagenet"]

_CIFAR = {"augment": ("crop", "mirror", "cutout")}


def cifar10(model: str, method: str, **others: Any) -> Config:
    return _config("cifar10", model, method, {"rho": 0.05, "alpha": 0.2} | _CIFAR | others)


def cifar100(model: str, method: str, **others: Any) -> Config:
    return _config("cifar100", model, method, {"rho": 0.1, "alpha": 0.4} | _CIFAR | others)


def tiny_imagenet(model: str, method: str, **others: Any) -> Config:
    tiny = {"rho": 0.1, "alpha": 0.8, "augment": ("crop", "mirror")}
    return _config("tiny_imagenet", model, method, tiny | others)


def _config(dataset: str, model: str, method: str, others: dict[str, Any]) -> Config:
    return Config(
        dataset=dataset, model=model, method=(method,), epochs=200, batch_size=128, **others
    )
