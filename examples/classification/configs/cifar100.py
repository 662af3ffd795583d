"""CIFAR-100, ResNet-18: SGD, SAM and ARSAM, one seed, as arXiv 2510.03763 has it.

python -m examples.classification --config cifar100
"""

import dataclasses

from examples.classification import paper

config = dataclasses.replace(
    paper.rows()["table3/cifar100_resnet18_arsam"].config,
    method=("sgd", "sam", "arsam"),
    seeds=(0,),
)
