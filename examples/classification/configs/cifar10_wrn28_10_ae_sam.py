"""CIFAR-10, WideResNet-28-10, AE-SAM: table 3 of arXiv 2510.03763.
The numbers are those of AE-SAM's paper (ICLR 2023), as the table has them.

python -m examples.classification --config cifar10_wrn28_10_ae_sam
"""

from examples.classification.configs import paper

config = paper.cifar10("wrn28_10", "ae_sam")
published = {"ae_sam": paper.Published(accuracy=97.3, std=0.1, percent_sam=49.5)}
