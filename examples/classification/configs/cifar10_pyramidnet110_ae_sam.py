"""CIFAR-10, PyramidNet-110, AE-SAM: table 3 of arXiv 2510.03763.
The numbers are those of AE-SAM's paper (ICLR 2023), as the table has them.

python -m examples.classification --config cifar10_pyramidnet110_ae_sam
"""

from examples.classification.configs import paper

config = paper.cifar10("pyramidnet110", "ae_sam")
published = {"ae_sam": paper.Published(accuracy=97.9, std=0.05, percent_sam=50.3)}
