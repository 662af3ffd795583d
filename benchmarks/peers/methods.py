"""The peers, each with the dial that its authors turn, and other choices of when to sample."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from arsam_jax import correction, probe, radius, sampling, trajectory
from benchmarks.harness.methods import METHODS as KNOWN
from benchmarks.harness.methods import Method, every_step, gate_of_share
from benchmarks.harness.training import Whole
from benchmarks.harness.workloads import Term, Workload

SHARE = 1 / 4  # of sampled steps, where a method can be told one
MEASURED_EVERY = 16


class Peer(NamedTuple):
    """A method, whose ``shares`` are the values of its dial, and multiples of SAM's ρ."""

    method: Method
    factors: tuple[float, ...] = (1,)


def link(
    make: Callable[..., Any],
    dials: tuple[float, ...] = (1,),
    gradients: float | Callable[[float], float] = 2.0,
    factors: tuple[float, ...] = (1,),
) -> Peer:
    """Of ``(rho, dial) -> link``, at a price of so many gradients a step."""

    def cost(sampled, dial):
        del sampled
        return gradients(dial) if callable(gradients) else gradients

    return Peer(Method(lambda rho, dial, steps, seed: make(rho, dial), dials, cost), factors)


def decoupled_wsam(rho, gamma, steps, seed, *, base, schedule, workload):
    del steps, seed, workload
    return arsam_jax.decouple(arsam_jax.wsam(rho, gamma), base, schedule)


def sampa(rho, interpolation, steps, seed, *, base, schedule, workload):
    del steps, seed, workload
    return optax.chain(arsam_jax.sampa(rho, schedule, interpolation=interpolation), base)


def ausam(rho, share, steps, seed, *, base, schedule, workload):
    """Its weights rise over as large a part of the run as the authors', 30 of 200 epochs."""
    del schedule
    made = arsam_jax.ausam(
        rho,
        workload.num_train,
        steps // workload.epochs,
        share=share,
        rise_epochs=0.15 * workload.epochs,
        seed=seed,
    )
    return optax.chain(made, base)


def at_budget(policy: Callable[..., sampling.SamplingPolicy]) -> Peer:
    """``budgeted_sam`` that samples otherwise: its radius, its bounds, other steps."""

    def make(rho, share, steps, seed):
        return arsam_jax.sharpness_aware(
            rho * share ** (-2 / 3),
            sampling=policy(share, steps, seed),
            correction=correction.reuse_psf(None, bound=0.1, sample_bound=share**-0.5),
        )

    return Peer(Method(make, (SHARE,)))


class VSAMState(NamedTuple):
    """Rings of the last K samples, the newest last."""

    psf_norms: Any
    ratios: Any
    variances: Any
    samples: Any  # s, of a segment
    taken: Any  # in this segment


def vsam_sampling(segment: int, warm_up: int, seed: Any) -> sampling.SamplingPolicy:
    """As the authors' code (github.com/ajiaaa/vSAM) chooses steps: s of each segment of K.

    s grows by 0.13 of the mean relative change of ‖PSF‖ / ‖g‖ from sample to sample and 0.13 of
    that of the variance of ‖PSF‖, each clipped to ±1, both over K samples. At most ⌊s⌋ steps are
    drawn, and where too few were, the last of the segment are taken.
    """

    def init():
        ring = jnp.zeros([segment])
        return VSAMState(ring, ring, ring, jnp.ones([]), jnp.zeros([], jnp.int32))

    def mean_change(ring):
        change = jnp.where(ring[:-1] > 0, ring[1:] / jnp.where(ring[:-1] > 0, ring[:-1], 1) - 1, 0)
        return jnp.clip(change.mean(), -1, 1)

    def decide(state, step, grad_norm):
        del grad_norm
        place = step % segment
        moved = 1 + 0.13 * mean_change(state.ratios) + 0.13 * mean_change(state.variances)
        is_new = (place == 0) & (step >= warm_up)
        samples = jnp.where(
            is_new, jnp.clip(state.samples * moved, 1, 0.8 * segment), state.samples
        )
        taken = jnp.where(place == 0, 0, state.taken)
        key = jax.random.fold_in(jax.random.key(seed), step)
        quota = jnp.floor(samples).astype(jnp.int32)
        is_drawn = (taken < quota) & (jax.random.uniform(key) < samples / segment)
        is_due = segment - place <= quota - taken
        sampled = is_drawn | is_due | (step < warm_up)
        return sampled, state._replace(samples=samples, taken=taken + sampled.astype(jnp.int32))

    def record(state, step, sampled, grad_norm, correction_norm, rho):
        del step, rho

        def pushed(ring, value):
            return jnp.where(sampled, jnp.append(ring[1:], value), ring)

        psf_norms = pushed(state.psf_norms, correction_norm)
        fifths = jnp.array_split(jnp.sort(psf_norms), 5)
        variance = jnp.stack([fifth.var() for fifth in fifths]).mean()
        ratio = correction_norm / jnp.where(sampled, grad_norm, 1)
        return state._replace(
            psf_norms=psf_norms,
            ratios=pushed(state.ratios, ratio),
            variances=pushed(state.variances, variance),
        )

    return sampling.SamplingPolicy(init, decide, record)


def vsam(rho, segment, steps, seed):
    """With its warm-up of 3 of 200 epochs, and 0.7ⁿ of the PSF on the n-th step after a sample."""

    def init(params):
        return correction.Kept(optax.tree.zeros_like(params))

    def fresh(grads, perturbed_grads):
        return correction.Kept(optax.tree.sub(perturbed_grads, grads)), (1, 1)

    def stale(kept, grads, age):
        return 1, jnp.where(age <= 6, 0.7 ** age.astype(jnp.float32), 0)

    return arsam_jax.sharpness_aware(
        rho,
        sampling=vsam_sampling(int(segment), round(0.015 * steps), seed),
        correction=correction.Correction(init, fresh, stale),
    )


def even_and_final(rho, share, steps, seed):
    """Half of the samples as `budgeted_sam` takes them, the others at the end, all at SAM's ρ.

    From what the held-out trainings showed: the end alone is what pays on a little text, and
    evenly spaced samples are on wrong labels.
    """
    del seed
    half = share / 2
    first_at_the_end = steps - round(half * steps)
    even = sampling.budgeted(half)

    def decide(state, step, grad_norm):
        sampled, state = even.decide(state, step, grad_norm)
        return sampled | (step >= first_at_the_end), state

    return arsam_jax.sharpness_aware(
        lambda step: jnp.where(step < first_at_the_end, rho * half ** (-2 / 3), rho),
        sampling=even._replace(decide=decide),
        correction=correction.reuse_psf(None, bound=0.1, sample_bound=half**-0.5),
    )


def measured_momentum(ratio: float) -> Peer:
    """Momentum-SAM at the ρ that holds ‖PSF‖ / ‖g‖, seen on one step of 16; it reads no ρ."""
    policy, inner = radius.hold_ratio(ratio), probe.momentum()
    record: Any = policy.record

    def update(grads, state, params, *, rho, step, grad_fn, **extra_args):
        del rho
        momentum, held = state
        rho = policy.value(held, step)
        perturbed, momentum = inner.update(grads, momentum, params, rho=rho, grad_fn=grad_fn)

        def measure(held):
            clean = grad_fn(params)
            psf = optax.tree.norm(optax.tree.sub(perturbed, clean))
            return record(held, step, True, optax.tree.norm(clean), psf, rho)

        held = jax.lax.cond(step % MEASURED_EVERY == 0, measure, lambda held: held, held)
        return perturbed, (momentum, held)

    made = probe.Probe(lambda params: (inner.init(params), policy.init(params)), update, False)
    return link(
        lambda rho, dial: arsam_jax.sharpness_aware(rho, probe=made),
        gradients=1 + 1 / MEASURED_EVERY,
    )


def of_trajectory(term: Callable[[float, Workload], Term], dials, gradients: float) -> Peer:
    """SGD with a term of the loss, of this strength."""

    @functools.cache  # one term, so that it is compiled once
    def change(workload, strength):
        return workload._replace(term=term(strength, workload))

    return Peer(Method(KNOWN["sgd"].make, dials, lambda sampled, dial: gradients, change))


def saf(strength: float, workload: Workload) -> Term:
    """Each place of a text is an example of its own."""
    x = jnp.asarray(workload.source.train()[0][:1])
    shape = jax.eval_shape(
        lambda: workload.network.init_with_output(jax.random.key(0), x, train=True)[0]
    ).shape[1:]
    places, classes = int(np.prod(shape[:-1])), shape[-1]

    def rows(index, outputs):
        flat = index[:, None] * places + jnp.arange(places, dtype=index.dtype)
        return flat.reshape(-1), outputs.reshape(-1, classes)

    def loss(memory, index, epoch, outputs, outputs_of):
        del outputs_of
        index, outputs = rows(index, outputs)
        return memory.loss(index, epoch, outputs, strength=strength)

    def keep(memory, index, epoch, outputs, params):
        del params
        index, outputs = rows(index, outputs)
        return memory.write(index, epoch, outputs)

    return Term(
        lambda params, count: trajectory.LogitMemory.create(count * places, classes), loss, keep
    )


def mesa(strength: float, workload: Workload) -> Term:
    """Its average is over as large a part of the run as the authors', a sixteenth."""
    steps = workload.epochs * workload.num_train // workload.batch_size
    part = min(1.0, 16 / steps)

    def loss(average, index, epoch, outputs, outputs_of):
        del index
        return trajectory.mesa_loss(outputs_of(average), outputs, epoch, strength=strength)

    return Term(
        lambda params, count: params,
        loss,
        lambda average, index, epoch, outputs, params: optax.incremental_update(
            params, average, part
        ),
    )


def stochastic_weight_averaging() -> Peer:
    """SGD at SWA's average. The dial: where the learning rate ends, 0 with its own schedule."""
    dials = 0.0, 0.05, 0.2, 0.5
    return Peer(
        Method(
            KNOWN["sgd"].make,
            dials,
            lambda sampled, dial: 1,
            lambda workload, dial: workload._replace(swa=dial),
        )
    )


BASES = ("sgd", "swa", "saf", "mesa")  # have SGD's setting, the others SAM's
PEERS = {
    "sgd": Peer(KNOWN["sgd"]),
    "sam": Peer(KNOWN["sam"]),
    # What is cheaper than SAM.
    "swa": stochastic_weight_averaging(),
    "momentum_sam": link(
        lambda rho, dial: arsam_jax.momentum_sam(rho), gradients=1, factors=(1, 2, 4, 8, 16)
    ),
    "momentum_sam_measured": measured_momentum(1.0),
    "looksam": Peer(
        Method(
            lambda rho, alpha, steps, seed: arsam_jax.looksam(rho, round(1 / SHARE), alpha),
            (0.05, 0.1, 0.2, 0.4, 0.7),
        )
    ),
    "esam": link(
        lambda rho, beta: arsam_jax.esam(rho, beta=beta, gamma=1 / 2),
        (0.5, 0.8),
        gradients=1 + 1 / 2 + 2 / 3,
    ),
    "vsam": Peer(Method(vsam, (10, 50))),
    "ae_sam": Peer(KNOWN["ae_sam"]._replace(shares=(SHARE,))),
    "k_sam": link(arsam_jax.k_sam, (1 / 2, 3 / 4), gradients=lambda share: 2 * share + 1 / 3),
    "ausam": Peer(Method(Whole(ausam), (1 / 2,), lambda sampled, share: 2 * share)),
    "saf": of_trajectory(saf, (0.1, 0.3, 1.0), gradients=1),
    "mesa": of_trajectory(mesa, (0.3, 0.8, 2.0), gradients=4 / 3),
    # What costs as much, or more.
    "gsam": link(arsam_jax.gsam, (0.1, 0.2, 0.4)),
    "wsam": Peer(Method(Whole(decoupled_wsam), (0.5, 0.7, 0.9), lambda sampled, gamma: 2)),
    "sampa": Peer(Method(Whole(sampa), (0.2,), lambda sampled, dial: 2)),
    "asam": link(lambda rho, dial: arsam_jax.asam(rho), factors=(1, 2, 5, 10, 20)),
    "gam": link(
        lambda rho, part: arsam_jax.gam(rho, grad_rho=part * rho), (1 / 5, 1.0), gradients=4
    ),
    "rw_sam": Peer(every_step("rw_sam")),
    "friendly_sam": Peer(every_step("friendly_sam")),
    "gradient_norm_penalty": link(arsam_jax.gradient_norm_penalty, (0.4, 0.7)),
    # Other steps than evenly spaced ones, all else as in `budgeted_sam`.
    "budgeted_sam": at_budget(lambda share, steps, seed: sampling.budgeted(share)),
    "at_random": at_budget(lambda share, steps, seed: sampling.bernoulli(share, seed)),
    "where_gradients_are_large": at_budget(gate_of_share),
    "as_arsam": at_budget(  # its price is an outcome
        lambda share, steps, seed: sampling.autoregressive(
            0.4, segment_length=8, initial_samples=8 * share, seed=seed
        )
    ),
    "even_and_final": Peer(Method(even_and_final, (SHARE,))),
    "more_and_more": at_budget(
        lambda share, steps, seed: sampling.bernoulli(lambda step: 2 * share * step / steps, seed)
    ),
    "less_and_less": at_budget(
        lambda share, steps, seed: sampling.bernoulli(
            lambda step: 2 * share * (1 - step / steps), seed
        )
    ),
}
