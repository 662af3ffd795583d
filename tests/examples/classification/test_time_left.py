"""What the program says of the time that is left, and that it compiles a method once."""

import pytest
from jax import monitoring

from examples.classification import methods
from examples.classification.__main__ import main
from examples.classification.config import Config

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_seeds_at_once_pay_every_second_gradient():
    config = Config(share=1 / 8)
    assert methods.step_cost("budgeted_sam", 1, config) == 1 + 1 / 8
    assert methods.step_cost("budgeted_sam", 3, config) == 3 * 2


def test_the_terms_of_the_loss_have_a_price():
    for method, price in (("sgd", 1), ("saf", 1), ("mesa", 4 / 3), ("sam", 2)):
        assert methods.gradients(method) == methods.step_cost(method, 1, Config()) == price


def test_each_method_is_compiled_once_and_the_time_is_told(data_dir, tmp_path, capsys):
    lowered = []

    def listen(event, seconds, **about):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(about.get("fun_name"))

    monitoring.register_event_duration_secs_listener(listen)
    arguments = ["--method", "sgd", "sam", "--seeds", "0", "1", "2", "--epochs", "3"]
    arguments += ["--width", "2", "--batch-size", "100", "--data-dir", str(data_dir)]
    try:
        assert main([*arguments, "--output", str(tmp_path)]) == 0
    finally:
        monitoring.unregister_event_duration_listener(listen)
    steps = [name for name in lowered if name and "train_step" in name]
    assert len(steps) == 2, lowered
    assert "train_step" in steps[0]
    output = " ".join(capsys.readouterr().out.split())
    assert "To train: 6 runs of 30 steps, about 270 gradients in all" in output
    assert "left, judging by the first steps of sgd sgd, seed 0: " in output
    told = [line.split("; about ")[1] for line in output.split("SAM, ")[1:6]]
    assert all(" left" in text for text in told)
