"""CIFAR-100, ResNet-18, AE-SAM: table 3 of arXiv 2510.03763.
The numbers are those of AE-SAM's paper (ICLR 2023), as the table has them.

python -m examples.classification --config cifar100_resnet18_ae_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("resnet18", "ae_sam")
published = {"ae_sam": paper.Published(accuracy=80.48, std=0.11, percent_sam=49.8)}
