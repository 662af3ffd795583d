"""The notebooks run without a warning, and their results are what their text says."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = Path(__file__).parent.parent.parent / "docs" / "notebooks"
PAGES = sorted(NOTEBOOKS.glob("*.md"))

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.long]


def fifteen_minutes(names):
    accuracy = {name: accuracies[-1] for name, (_, accuracies, _) in names["runs"].items()}
    share = {name: metrics[-1]["sampled_share"] for name, (*_, metrics) in names["runs"].items()}
    best = {name: max(accuracies) for name, (_, accuracies, _) in names["runs"].items()}
    assert best["SGD"] > accuracy["SGD"] + 0.05
    assert names["runs"]["SGD"][1].index(best["SGD"]) < len(names["runs"]["SGD"][1]) / 2
    assert accuracy["SAM"] > best["SAM"] - 0.02
    assert min(accuracy["SAM"], accuracy["ARSAM"]) > accuracy["SGD"] + 0.05
    assert accuracy["ARSAM"] > accuracy["SAM"] - 0.04
    assert (share["SGD"], share["SAM"]) == (0, 1)
    assert 0.05 < share["ARSAM"] < 0.8
    _, _, metrics = names["runs"]["ARSAM"]
    third = len(metrics) // 3
    assert metrics[-1]["probability"] > 2 * metrics[0]["probability"]
    first, last = (
        names["np"].median([row["ratio"] for row in rows if row["sampled"]])
        for rows in (metrics[:third], metrics[-third:])
    )
    assert last < first
    assert names["cost"] == 1.25
    assert names["accuracies"][-1] > accuracy["SGD"] + 0.05
    for norm in (names["norms"]["‖g‖"], names["norms"]["‖PSF‖"]):
        assert norm[-50:].mean() < norm[:50].mean()
    ratio = names["running_median"](names["norms"]["c = ‖PSF‖ / ‖g‖"])
    assert ratio[-1] > 2 * ratio[0]


def flatness(names):
    for name in ("SAM", "ARSAM"):
        assert names["accuracy"][name] > names["accuracy"]["SGD"] + 0.05
        assert names["loss"](names["networks"][name]) > names["loss"](names["networks"]["SGD"])
        for measure in ("largest", "trace"):
            assert 2 * names[measure][name] < names[measure]["SGD"]
        assert 2 * names["rises"][name][-1] < names["rises"]["SGD"][-1]
        assert 2 * names["curves"][name].max() < names["curves"]["SGD"].max()
    assert names["num_params"] ** 2 // 10**6 == 682
    for nodes, weights in names["spectra"].values():
        assert weights[abs(nodes) < 0.1 * nodes.max()].sum() > 0.98


CHECKS = {check.__name__: check for check in (fifteen_minutes, flatness)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_notebook_runs(page):
    cells = re.findall(r"^```\{code-cell\} python\n(.*?)^```$", page.read_text(), re.M | re.S)
    names = {}
    with mpl.rc_context({"backend": "agg"}):
        for i, cell in enumerate(cells):
            exec(compile(cell, f"{page.name}, cell {i + 1}", "exec"), names)
            for number in plt.get_fignums():
                plt.figure(number).canvas.draw()
            plt.close("all")
    CHECKS[page.stem](names)
