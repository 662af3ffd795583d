"""Runs that nobody trains. Workers import this: it must not import JAX."""

from typing import NamedTuple

from benchmarks.harness import search

PROVENANCE = {"date": "today", "commit": "0ddba11", "device": "cpu", "versions": "a, b"}


class Run(NamedTuple):
    stage: str
    method: str
    share: float
    seed: int


def execute(run: Run) -> dict:
    return run._asdict() | {"accuracy": 50 + run.seed + run.share} | PROVENANCE


def failing(run: Run) -> dict:
    if run.seed == 1:
        raise RuntimeError("interrupted")
    return execute(run)


def forbidden(run: Run) -> dict:
    raise AssertionError(f"{run} was done again")


def study(execute) -> search.Study:
    return search.Study(Run, execute, lambda run: run[:3], lambda run: 1.0)
