"""The report of a run folder and the comparison of several, from records written by hand."""

import base64
import json
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from examples.classification import history, loop, plots, plots_comparison, report, runs, settings
from examples.classification.config import Config
from examples.classification.methods import METHODS
from examples.common import records
from examples.common.settings import to_dict

STEPS, EPOCHS = 12, 3
DEVICE = {"platform": "gpu", "kind": "H100", "devices": 1, "processes": 1, "cpu_cores": 16}
DATA = {
    "training_images": 1000,
    "evaluation_images": 797,
    "evaluated_on": "test",
    "image_shape": [8, 8, 1],
    "classes": 10,
}
PAPER = """
from examples.classification.config import Config, Published

config = Config(dataset="digits", label_noise=0.2, epochs=3)
published = {
    "sam": Published(96.7, 0.12, 100.0, 500.0, 1.0),
    "arsam": Published(96.8, None, 41.0, 700.0, 1.4),
}
"""


def write_seed(folder, method, seed, *, tables=True, steps=STEPS, epochs=EPOCHS, **fields):
    place = loop.seed_folder(folder / method, seed)
    place.mkdir(parents=True)
    percent_sam = {"sgd": 0.0, "arsam": 25.0}.get(method, 100.0)
    result = {
        "method": method,
        "seed": seed,
        "steps": steps,
        "epochs": epochs,
        "accuracy": 0.9,
        "evaluated_on": "test",
        "best_accuracy": None,
        "best_epoch": None,
        "test_accuracy": fields.get("accuracy", 0.9),
        "train_loss": 0.5,
        "percent_sam": percent_sam,
        "seconds": 2.0,
        "images_per_second": 100.0,
        "peak_bytes": None,
        "seeds_at_once": 1,
    } | fields
    records.write_json(place / loop.RESULT_FILE, result)
    if not tables:
        return
    table = records.Table(place / "steps.csv", history.STEP_COLUMNS)
    for step in range(1, steps + 1):
        values = dict.fromkeys(history.STEP_COLUMNS, math.nan) | {"step": step, "epoch": 1}
        sampled = step * percent_sam / 100 % 1 == 0 and percent_sam > 0
        table.append(**values | {"grad_norm": 1.0, "sampled": int(sampled), "correction_norm": 0.5})
    table.save()
    table = records.Table(place / "epochs.csv", history.EPOCH_COLUMNS)
    for epoch in range(1, epochs + 1):
        accuracy = result["accuracy"] * epoch / epochs
        values = dict.fromkeys(history.EPOCH_COLUMNS, 1.0) | {"epoch": epoch, "accuracy": accuracy}
        table.append(**values | {"seconds": result["seconds"] * epoch / epochs})
    table.save()


def write_config(folder, **changes):
    folder.mkdir(parents=True)
    config = Config(**{"epochs": EPOCHS, "seeds": (0, 1)} | changes)
    records.write_json(folder / settings.CONFIG_FILE, to_dict(config))
    return folder


def write_run(folder, *, methods=("sgd", "sam", "arsam"), fields=None, **changes):
    """Two seeds of each method; accuracies 0.9 and 0.8 if ``fields`` say nothing else."""
    write_config(folder, method=methods, **changes)
    for method in methods:
        for seed in (0, 1):
            speed = {"sgd": 200.0, "sam": 100.0}.get(method, 150.0) + 10 * seed
            values = {"accuracy": 0.9 - 0.1 * seed, "images_per_second": speed}
            write_seed(folder, method, seed, **values | (fields or {}))
    return folder


def write_environment(folder, **device):
    records.write_json(
        folder / runs.ENVIRONMENT_FILE,
        {"data": DATA, "parameters": 1234, "versions": {"jax": "1"}, "device": DEVICE | device},
    )


def rows_of(*folders):
    return report.table_rows([runs.read_run(folder) for folder in folders])


def notes_of(*folders):
    return " ".join(report.table_notes([runs.read_run(folder) for folder in folders]))


def row_of(cells, *, num_left=1):
    """How the page begins a row of its table."""
    left = [f'<td class="left">{cell}</td>' for cell in cells[:num_left]]
    return "".join(["<tr>", *left, *(f"<td>{cell}</td>" for cell in cells[num_left:])])


def assert_shows(page, picture):
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert base64.b64encode(content).decode() in page


@pytest.fixture(autouse=True)
def small_plots(monkeypatch):
    monkeypatch.setitem(plots.STYLE, "figure.dpi", 40)


@pytest.fixture
def console():
    return Console(quiet=True)


@pytest.fixture
def paper(tmp_path):
    file = tmp_path / "paper.py"
    file.write_text(PAPER)
    return str(file)


@pytest.fixture(name="runs")
def runs_folder(tmp_path, monkeypatch):
    """The folder of all runs, which the program looks into."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_rows_are_means_over_seeds(tmp_path):
    folder = write_run(tmp_path / "run")
    sgd, sam, arsam = rows_of(folder)
    assert [row["method"] for row in (sgd, sam, arsam)] == ["sgd", "sam", "arsam"]
    assert sam["seeds"] == 2
    assert sam["accuracy"] == pytest.approx(0.85)
    assert sam["accuracy_std"] == pytest.approx(0.1 / math.sqrt(2))  # of a sample
    assert sam["images_per_second"] == pytest.approx(105)
    assert (sgd["speed_up"], sam["speed_up"]) == (pytest.approx(205 / 105), 1)
    assert arsam["speed_up"] == pytest.approx(155 / 105)
    assert [row["ideal_speed_up"] for row in (sgd, sam, arsam)] == [2, 1, 1.6]
    assert sam["peak_bytes"] is None
    assert sam["published_accuracy"] is None


def test_the_table_is_the_same_everywhere(tmp_path, capsys):
    folder = write_run(tmp_path / "run", fields={"peak_bytes": 12_600_000})
    report.write([folder], Console())
    terminal = capsys.readouterr().out
    page = (folder / "report.html").read_text()
    line = ["arsam", "2", "85.0 ± 7.1 %", "25.0", "155", "1.48", "1.60", "2.0 s", "13 MB"]
    assert row_of(line) in page
    assert re.search(r" *│ +".join(map(re.escape, line)), terminal)
    table = json.loads((folder / "report.json").read_text())["table"]
    assert table == rows_of(folder)


def test_a_narrow_terminal_cuts_nothing_off(tmp_path, paper):
    folder = write_run(tmp_path / "run", config=paper, label_noise=0.2)
    console = Console(width=80, force_terminal=True)
    with console.capture() as capture:
        report.write([folder], console)
    text = capture.get()
    assert "…" not in text
    assert all(value in text for value in ("85.0", "7.1", "155", "1.48", "96.7", "700"))


def test_no_sam_no_speed_up_and_other_prices_no_ideal(tmp_path):
    for row in rows_of(write_run(tmp_path / "run", methods=("sgd", "esam"))):
        assert row["speed_up"] is None
        assert (row["ideal_speed_up"] is None) == (row["method"] == "esam")


def test_best_and_test_accuracies_have_columns_where_they_are(tmp_path):
    columns = report.table_columns(rows_of(write_run(tmp_path / "plain")))
    assert not {"best validation accuracy", "memory", "published test accuracy"} & {*columns}
    fields = {"evaluated_on": "validation", "best_accuracy": 0.95, "test_accuracy": 0.7}
    folder = write_run(tmp_path / "run", validation=0.1, final_test=True, fields=fields)
    columns = report.table_columns(rows_of(folder))
    assert columns["validation accuracy"][0] == "85.0 ± 7.1 %"
    assert columns["best validation accuracy"][0] == "95.0 ± 0.0 %"
    assert columns["test accuracy"][0] == "70.0 ± 0.0 %"


def test_one_seed_has_no_deviation(tmp_path):
    folder = write_config(tmp_path / "run", method=("sam",), seeds=(3,))
    write_seed(folder, "sam", 3)
    (row,) = rows_of(folder)
    assert row["accuracy_std"] is None
    assert report.table_columns([row])["test accuracy"] == ["90.0 %"]


def test_published_figures_stand_beside(tmp_path, paper, console):
    folder = write_run(tmp_path / "run", config=paper, label_noise=0.2)
    columns = report.table_columns(rows_of(folder))
    assert columns["published test accuracy"] == ["–", "96.7 ± 0.1 %", "96.8 %"]
    assert columns["published %SAM"] == ["–", "100.0", "41.0"]
    assert columns["published images/s"] == ["–", "500", "700"]
    assert columns["published speed-up"] == ["–", "1.00", "1.40"]
    report.write([folder], console)
    assert "arXiv 2510.03763, measured on other hardware (one RTX 3090)" in (
        (folder / "report.html").read_text()
    )


def test_published_figures_of_other_settings_are_marked_or_left_out(tmp_path, paper):
    shorter = write_run(tmp_path / "shorter", config=paper, label_noise=0.2, rho=0.3)
    assert rows_of(shorter)[1]["published_accuracy"] == pytest.approx(0.967)
    assert rows_of(shorter)[1]["published_settings"] == {"rho": 0.1}
    assert "The published figures are for rho 0.1 (here 0.3)." in notes_of(shorter)
    noisier = write_run(tmp_path / "noisier", config=paper, label_noise=0.4)
    assert rows_of(noisier)[1]["published_accuracy"] is None
    assert "label_noise 0.2 (here 0.4), and not shown" in notes_of(noisier)
    gone = write_run(tmp_path / "gone", config=str(tmp_path / "gone.py"))
    assert rows_of(gone)[1]["published_accuracy"] is None
    assert "No published figures: there is no config" in notes_of(gone)


def test_unfinished_runs_are_left_out_and_named(tmp_path, console):
    folder = write_config(tmp_path / "run", method=("sgd", "sam"), seeds=(0, 1))
    write_seed(folder, "sgd", 0)
    write_seed(folder, "sgd", 1)
    write_seed(folder, "sam", 1)
    (loop.seed_folder(folder / "sam", 0)).mkdir()
    assert [(row["method"], row["seeds"]) for row in rows_of(folder)] == [("sgd", 2), ("sam", 1)]
    report.write([folder], console)
    page = (folder / "report.html").read_text()
    assert "1 of 4 runs not finished, and left out: sam, seed 0." in page
    assert "Not all methods have the same seeds." in page
    assert json.loads((folder / "report.json").read_text())["unfinished"] == ["sam, seed 0"]


def test_finished_runs_outside_of_the_last_settings_belong_to_the_report(tmp_path):
    folder = write_config(tmp_path / "run", method=("sam",), seeds=(0,))
    write_seed(folder, "sam", 0)
    write_seed(folder, "sam", 5)
    write_seed(folder, "arsam", 0)
    assert [(row["method"], row["seeds"]) for row in rows_of(folder)] == [("sam", 2), ("arsam", 1)]


def test_writing_twice_gives_the_same_report(tmp_path, paper, console):
    folder = write_run(tmp_path / "run", config=paper, label_noise=0.2)
    write_environment(folder)
    report.write([folder], console)
    files = [folder / name for name in (report.HTML_FILE, report.JSON_FILE)]
    before = [file.read_bytes() for file in files]
    report.write([folder], console)
    assert [file.read_bytes() for file in files] == before
    assert not list(folder.rglob("*.tmp"))
    page = (folder / "report.html").read_text()
    assert "1,000 training and 797 test images of 8×8×1" in page
    assert "cnn with 1,234 parameters" in page
    for name in ("accuracy", "cost", "sampling", "norms"):
        assert_shows(page, folder / f"{name}.png")
    assert json.loads(files[1].read_text())["device"] == DEVICE


def test_diverged_runs_and_missing_tables_do_no_harm(tmp_path, console):
    folder = write_config(tmp_path / "run", method=("sgd", "sam"))
    for seed in (0, 1):
        nan = {"accuracy": math.nan, "train_loss": math.nan} if seed else {}
        write_seed(folder, "sam", seed, **nan)
        write_seed(folder, "sgd", seed, tables=False)
    report.write([folder], console)
    assert "Diverged (the loss is no number): sam, seed 1." in (folder / "report.html").read_text()
    table = json.loads((folder / "report.json").read_text())["table"]
    assert [row["accuracy"] for row in table] == [0.9, None]  # JSON has no NaN
    only_results = write_run(tmp_path / "results", fields={"accuracy": math.nan})
    for file in only_results.rglob("*.csv"):
        file.unlink()
    report.write([only_results], console)
    report.write([folder, only_results], console, tmp_path / "both")


def test_runs_that_stopped_early_are_drawn_to_their_end(tmp_path):
    folder = write_config(tmp_path / "run", method=("sam",))
    write_seed(folder, "sam", 0, seconds=6.0)
    write_seed(folder, "sam", 1, seconds=2.0, epochs=1, steps=4, accuracy=0.5)
    tables = runs.tables(runs.read_run(folder), "epochs")
    epoch, seconds, mean, _ = plots.accuracy_curve(tables["sam"])
    np.testing.assert_array_equal(epoch, [1, 2, 3])
    np.testing.assert_allclose(seconds, [2, 3, 4])
    np.testing.assert_allclose(mean, [40, 55, 70])
    report.write([folder], Console(quiet=True))


def test_plots_survive_a_diverged_run(tmp_path):
    nan = float("nan")
    steps = records.Table(tmp_path / "steps.csv", history.STEP_COLUMNS)
    for step in range(1, 9):
        steps.append(**dict.fromkeys(history.STEP_COLUMNS, nan) | {"step": step, "sampled": 1})
    epochs = records.Table(tmp_path / "epochs.csv", history.EPOCH_COLUMNS)
    epochs.append(**dict.fromkeys(history.EPOCH_COLUMNS, 1) | {"train_loss": nan})
    row = {"method": "sam", "seconds": 1.0, "accuracy": nan, "accuracy_std": None}
    paths = plots.save_plots(tmp_path, {"sam": [steps]}, {"sam": [epochs]}, [row], "diverged")
    names = ["accuracy.png", "cost.png", "sampling.png", "norms.png"]
    assert [path.name for path in paths] == names


def test_comparison_against_a_numeric_setting(runs, paper, capsys):
    for noise in (0.2, 0.4):
        accuracy = {"fields": {"accuracy": 1 - noise}}
        write_run(runs / f"noise{noise}", config=paper, label_noise=noise, **accuracy)
    names = ["noise0.2", "noise0.4"]
    assert report.main(names) == 0
    assert "label_noise" in capsys.readouterr().out
    folder = runs / "report"
    summary = json.loads((folder / "report.json").read_text())
    assert [row["settings"] for row in summary["table"]] == 3 * [{"label_noise": 0.2}] + 3 * [
        {"label_noise": 0.4}
    ]
    assert [row["accuracy"] for row in summary["table"]] == pytest.approx(3 * [0.8] + 3 * [0.6])
    assert list(summary["runs"]) == names
    page = (folder / "report.html").read_text()
    assert row_of(["noise0.4", "0.4", "arsam", "2", "60.0 ± 0.0 %"], num_left=3) in page
    for name in ("comparison", "curves", "setting"):
        assert_shows(page, folder / f"{name}.png")
    before = [(folder / name).read_bytes() for name in ("report.html", "report.json")]
    assert report.main(names) == 0
    assert before == [(folder / name).read_bytes() for name in ("report.html", "report.json")]
    assert report.main([*names, "--output", "elsewhere"]) == 0
    assert (runs.parent / "elsewhere" / "setting.png").exists()


def test_a_comparison_keeps_no_picture_of_the_one_before(runs, capsys):
    for name, changes in (("one", {}), ("two", {"alpha": 0.1}), ("model", {"model": "resnet18"})):
        write_run(runs / name, **changes)
    assert report.main(["one", "two"]) == 0
    own = runs / "report" / "norms.png"  # of this name, but not written by a comparison
    own.write_text("mine")
    assert (runs / "report" / "setting.png").exists()
    assert report.main(["one", "model"]) == 0
    names = {path.name for path in (runs / "report").iterdir()}
    assert names == {"report.html", "report.json", "comparison.png", "curves.png", "norms.png"}
    assert own.read_text() == "mine"
    capsys.readouterr()


def drawn(monkeypatch, draw):
    """The figures of a report, in place of their files."""
    figures = {}
    monkeypatch.setattr(plots, "save", lambda now, folder, title: figures.update(now))
    draw()
    for figure in figures.values():
        figure.suptitle("title")
        figure.draw_without_rendering()
    return figures


@pytest.mark.parametrize("number", [3, len(METHODS)])
def test_legends_hide_nothing_and_have_room(number, tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", methods=METHODS[:number])
    run, rows = runs.read_run(folder), rows_of(folder)
    steps, epochs = runs.tables(run, "steps"), runs.tables(run, "epochs")
    other = rows_of(folder, write_run(tmp_path / "other", methods=METHODS[:number], alpha=0.1))
    tables = {"run": epochs, "other": epochs}
    figures = drawn(
        monkeypatch, lambda: plots.save_plots(tmp_path, steps, epochs, rows, "")
    ) | drawn(monkeypatch, lambda: plots_comparison.save_plots(tmp_path, tables, other, ""))
    assert len(figures) == 7
    for name, figure in figures.items():
        (legend,) = figure.legends
        assert not any(axes.get_legend() for axes in figure.axes)
        box, whole = legend.get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0, name
        assert whole.y0 <= box.y0, name
        assert box.x1 <= whole.x1, name
        assert box.y1 <= whole.y1, name
        for axes in figure.axes:
            assert not axes.get_tightbbox().overlaps(box), name
            assert axes.bbox.width > 0.5 * 3.6 * figure.dpi, name
    plt.close("all")


def test_a_method_looks_alike_in_all_pictures_and_like_no_other(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", methods=METHODS)
    run, rows = runs.read_run(folder), rows_of(folder)
    steps = {"arsam": runs.tables(run, "steps")["arsam"]}  # of one method alone
    epochs = runs.tables(run, "epochs")
    figures = drawn(monkeypatch, lambda: plots.save_plots(tmp_path, steps, epochs, rows, ""))
    looks = {}
    for name in ("accuracy", "sampling"):
        for line in figures[name].axes[0].lines:
            method = line.get_label().split()[0]
            if method in METHODS:
                looks.setdefault(method, set()).add((line.get_color(), line._unscaled_dash_pattern))
    assert looks.keys() == {*METHODS}
    assert all(len(own) == 1 for own in looks.values())
    assert len(set.union(*looks.values())) == len(METHODS)
    plt.close("all")


def test_the_setting_needs_to_be_one_number(tmp_path):
    reference = write_run(tmp_path / "reference")
    others = {
        "noise": ({"label_noise": 0.4}, "label_noise"),
        "alpha": ({"alpha": 1}, "alpha"),
        "model": ({"model": "resnet18"}, None),
        "best": ({"tensorboard": True}, None),
        "two": ({"alpha": 0.1, "rho": 0.3}, None),
        "width": ({"width": 8}, None),  # 0, of the other run, stands for the model's own
    }
    for name, (changes, setting) in others.items():
        rows = rows_of(reference, write_run(tmp_path / name, **changes))
        assert plots_comparison.numeric_setting(rows) == setting


def test_what_was_evaluated_is_marked(tmp_path, console):
    tested = write_run(tmp_path / "tested")
    held_out = write_run(
        tmp_path / "held_out",
        validation=0.1,
        dataset="fashion_mnist",
        fields={"evaluated_on": "validation", "test_accuracy": None},
    )
    rows, notes = rows_of(tested, held_out), notes_of(tested, held_out)
    columns = report.table_columns(rows)
    assert columns["evaluated on"] == 3 * ["test"] + 3 * ["validation"]
    assert columns["dataset"] == 3 * ["digits"] + 3 * ["fashion_mnist"]
    assert "accuracy" in columns
    assert columns["test accuracy"][3:] == 3 * ["–"]
    assert "different data sets" in notes
    assert "others of the test images" in notes
    assert plots_comparison.numeric_setting(rows) is None
    report.write([tested, held_out], console, tmp_path / "report")


def test_speed_up_over_the_sam_of_another_run_of_the_same_work(tmp_path):
    reference = write_run(tmp_path / "reference", methods=("sam",))
    same = write_run(tmp_path / "same", methods=("arsam",), alpha=0.1)
    larger = write_run(tmp_path / "larger", methods=("arsam",), batch_size=256)
    rows = rows_of(reference, same, larger)
    assert [row["speed_up"] for row in rows] == [1, pytest.approx(155 / 105), None]
    assert [row["speed_up_over"] for row in rows] == ["reference", "reference", None]
    assert report.table_columns(rows)["speed-up"] == ["1.00", "1.48†", "–"]
    assert "† same: speed-up over the SAM of reference" in notes_of(reference, same)
    report.write([reference, same], Console(quiet=True), tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<li>† same: speed-up" in page
    write_environment(reference)
    write_environment(same, kind="H200")
    rows = rows_of(reference, same)
    assert rows[1]["speed_up"] is None
    assert report.table_columns(rows)["device"] == ["H100", "H200"]


def test_runs_of_one_name_are_told_apart(tmp_path, console):
    folders = [write_run(tmp_path / place / "run") for place in ("a", "b")]
    report.write(folders, console, tmp_path / "report")
    table = json.loads((tmp_path / "report" / "report.json").read_text())["table"]
    assert [row["run"] for row in table] == 3 * [str(folders[0])] + 3 * [str(folders[1])]


def test_one_run_writes_its_own_report(runs, capsys):
    folder = write_run(runs / "one")
    assert report.main(["one"]) == 0
    assert (folder / "report.html").exists()
    assert report.main([str(folder), "--output", "copy"]) == 0
    assert (runs.parent / "copy" / "report.html").exists()
    capsys.readouterr()


def test_the_environment_is_kept_with_those_before(tmp_path):
    trainer = SimpleNamespace(
        config=Config(),
        num_params=5,
        mesh=SimpleNamespace(size=1),
        data=SimpleNamespace(
            train_labels=np.zeros(7),
            train_images=np.zeros((7, 8, 8, 1)),
            evaluation=(None, np.zeros(3)),
            num_classes=10,
        ),
    )
    folder = write_run(tmp_path / "run")
    for devices, earlier in ((1, 0), (1, 0), (2, 1), (1, 2)):
        trainer.mesh.size = devices
        runs.save_environment(folder, trainer)
        environment = runs.read_run(folder).environment
        assert environment["device"]["devices"] == devices
        assert environment["data"]["evaluation_images"] == 3
        assert len(environment["earlier"]) == earlier
    assert "more than one machine" in notes_of(folder)


def first(folder, pattern):
    return sorted(folder.rglob(pattern))[0]


def damage_result(folder):
    first(folder, loop.RESULT_FILE).write_text('{"method": "ar')


def empty_result(folder):
    first(folder, loop.RESULT_FILE).write_text("{}")


def swap_result(folder):
    file = first(folder, loop.RESULT_FILE)
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 4'))


def cut_table(folder):
    file = first(folder, "epochs.csv")
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")


def garble_table(folder):
    first(folder, "epochs.csv").write_text("epoch,accuracy\n1,none\n")


def lose_column(folder):
    file = first(folder, "epochs.csv")
    file.write_text(file.read_text().replace("accuracy", "precision"))


def break_config(folder):
    (folder / settings.CONFIG_FILE).write_text("{}")


def break_environment(folder):
    (folder / runs.ENVIRONMENT_FILE).write_text('{"data": 1}')


@pytest.mark.parametrize("others", [[], ["sound"]])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_result, "result.json is damaged: "),
        (empty_result, "result.json is damaged: it does not hold method, seed"),
        (swap_result, "result.json is of another run: arsam, seed4, test"),
        (cut_table, "epochs.csv is damaged: not 3 rows of epoch, train_loss"),
        (garble_table, "epochs.csv is damaged: "),
        (lose_column, "epochs.csv is damaged: not 3 rows of epoch, train_loss"),
        (break_config, "config.json does not hold the settings of a run"),
        (break_environment, "environment.json is damaged: it does not hold data, "),
    ],
)
def test_damaged_files_are_errors(damage, message, others, runs, capsys):
    for name in others:
        write_run(runs / name, methods=("sgd",))
    damage(write_run(runs / "damaged", methods=("arsam",)))
    assert report.main(["damaged", *others]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (runs / "report").exists()


def test_what_is_no_run_is_an_error(runs, capsys):
    def error_of(*arguments):
        assert report.main(arguments) == 2
        return capsys.readouterr().err

    assert "there is no run 'digits'; runs has none" in error_of("digits")
    write_run(runs / "digits")
    write_config(runs / "started")
    (runs / "other").mkdir()
    assert "there is no run 'digit'; did you mean digits?" in error_of("digit")
    assert "there is no run 'xyz'; runs has digits, started" in error_of("xyz")
    assert "runs/other is no run folder" in error_of("other")
    assert "runs/started has no finished run" in error_of("started")
    assert "a run is named twice" in error_of("digits", str(runs / "digits"))
    with pytest.raises(SystemExit) as exit_info:
        report.main(["--help"])
    assert exit_info.value.code == 0
