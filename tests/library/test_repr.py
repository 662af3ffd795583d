"""Parts print the call that made them."""

import pytest

from arsam_jax import ascent, correction, probe, radius, sampling, selection


def own_decision(*args):
    return True


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (correction.reuse_psf(None, bound=0.1), "reuse_psf(steps=None, bound=0.1)"),
        (correction.replace(), "replace()"),
        (sampling.every_k(3), "every_k(k=3)"),
        (probe.perturb(), "perturb()"),
        (probe.perturb(ascent.normalize_by_weights()), "perturb(ascent=normalize_by_weights(...))"),
        (probe.multi_step(2), "multi_step(num_steps=2)"),
        (selection.largest_losses(0.25), "largest_losses(share=0.25)"),
        (radius.hold_ratio(0.3), "hold_ratio(ratio=0.3)"),
        (
            sampling.SamplingPolicy(own_decision, own_decision),
            "SamplingPolicy(init=own_decision, decide=own_decision, record=None, norm=",
        ),
    ],
)
def test_a_part_prints_its_call(part, text):
    assert repr(part).startswith(text)
