"""Peers in PyTorch, on the CPU: SAM and LookSAM on the twins of three of our networks.

Needs torch, zij and pytorch_optimizer, which ``make .venv/peers`` installs.
"""

import itertools
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytorch_optimizer  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import zij  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.harness.networks import NETWORKS, NUM_CLASSES

VERSIONS = ", ".join(f"{name} {version(name)}" for name in ("torch", "zij", "pytorch_optimizer"))
PERIOD = 8  # LookSAM's k, and the steps of one call
COMPARISONS = (
    ("zij SAM", "torch SGD", None),
    ("zij LookSAM", "torch SGD", None),
    ("pytorch_optimizer LookSAM", "torch SGD", None),
    ("torch SGD", "torch SGD again", None),
)


class MLP(nn.Sequential):
    def __init__(self):
        layers = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise((28 * 28, 256, 256)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers, nn.Linear(256, NUM_CLASSES))


class CNN(nn.Sequential):
    def __init__(self):
        layers = []
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, NUM_CLASSES))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Unfold(7, stride=7)
        self.embed = nn.Linear(7 * 7, 128)
        self.position = nn.Parameter(0.02 * torch.randn(16, 128))
        self.block = nn.TransformerEncoderLayer(
            128, 4, 512, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, NUM_CLASSES)

    def forward(self, x):
        x = self.embed(self.patches(x).mT) + self.position
        return self.head(self.norm(self.block(x)).mean(1))


TWINS = {"mlp": MLP, "cnn": CNN, "transformer": Transformer}


def make_steps(model: str, batch_size: int) -> dict[str, Callable[[], None]]:
    """Functions that take ``PERIOD`` steps, by the name of the optimizer."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    height, width, channels = NETWORKS[model].image
    images = torch.randn(batch_size, channels, height, width)
    labels = torch.randint(0, NUM_CLASSES, (batch_size,))
    sgd: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9}
    rho = 0.05

    def make_step(make_optimizer, with_closure=True):
        module = TWINS[model]()
        optimizer = make_optimizer(module.parameters())

        def backward():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(images), labels)
            loss.backward()
            return loss

        def run():
            for step in range(PERIOD):
                # zij's LookSAM reads it from its base optimizer, and SGD does not write it.
                optimizer.param_groups[0]["step"] = step
                backward()
                optimizer.step(*[backward] * with_closure)

        return run

    def plain(params):
        return torch.optim.SGD(params, **sgd)

    def over_sgd(peer, **kwargs):
        return make_step(lambda params: peer(params, torch.optim.SGD, rho=rho, **kwargs, **sgd))

    return {
        "torch SGD": make_step(plain, with_closure=False),
        "torch SGD again": make_step(plain, with_closure=False),
        "zij SAM": over_sgd(zij.SAM),
        "zij LookSAM": over_sgd(zij.LookSAM, k=PERIOD),
        "pytorch_optimizer LookSAM": over_sgd(pytorch_optimizer.LookSAM, k=PERIOD),
    }
