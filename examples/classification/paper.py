"""The rows of the tables of arXiv 2510.03763 (ARSAM), each a config: ``published.csv``.

200 epochs, batches of 128, cosine decay, three seeds, M = 50 and, on CIFAR, cutout are the paper's,
and so is α: 0.2, 0.4 and 0.8, and 0.3 and 0.4 with label noise. It does not say the learning rate,
the weight decay or ρ. Here they are 0.1, 5e-4, and ρ as SAM's paper has it (arXiv 2010.01412): 0.05
on CIFAR-10 and 0.1 on the others. Crops and mirror images are the custom with all three sets.
"""

import csv
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from examples.classification.config import Config, Published

_FILE = Path(__file__).with_name("published.csv")


class Row(NamedTuple):
    """A config, what the paper reports for its one method, and what is odd about that."""

    config: Config
    published: Published
    note: str


@functools.cache
def rows() -> Mapping[str, Row]:
    """By names such as ``table3/cifar100_wrn28_10_arsam``."""
    with _FILE.open(newline="", encoding="utf-8") as file:
        return MappingProxyType({row["config"]: _row(row) for row in csv.DictReader(file)})


def _row(cells: dict[str, str]) -> Row:
    config = Config(
        dataset=cells["dataset"],
        image_size=int(cells["image_size"]),
        model=cells["model"],
        method=(cells["method"],),
        label_noise=float(cells["label_noise"]),
        rho=float(cells["rho"]),
        alpha=float(cells["alpha"]),
        augment=tuple(cells["augment"].split()),
        epochs=200,
        batch_size=128,
    )
    figures: Any = {name: float(cells[name]) if cells[name] else None for name in Published._fields}
    return Row(config, Published(**figures), cells["note"])
