"""CIFAR-100, PyramidNet-110, AE-SAM: table 3 of arXiv 2510.03763.
The numbers are those of AE-SAM's paper (ICLR 2023), as the table has them.

python -m examples.classification --config cifar100_pyramidnet110_ae_sam
"""

from examples.classification.configs import paper

config = paper.cifar100("pyramidnet110", "ae_sam")
published = {"ae_sam": paper.Published(accuracy=85.58, std=0.1, percent_sam=49.8)}
