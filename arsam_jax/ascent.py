"""Ascent directions: from a gradient to the direction of the perturbation.

An ascent is any ``optax.GradientTransformation``. The perturbation is ε = ρ · ascent(g). It runs on
sampled steps only, on gradients and parameters in at least float32, and receives ``params``,
``step`` (the step of training, int32 scalar) and the extra arguments of the update. Masks that
exclude parameters from the perturbation belong here::

    optax.chain(optax.masked(optax.set_to_zero(), is_bias), normalize())  # norm without biases
    optax.chain(normalize(), optax.masked(optax.set_to_zero(), is_bias))  # norm with biases

The masks of sparse SAM are in ``arsam_jax.sparse``.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from arsam_jax import _check, _random, _tree


def normalize() -> optax.GradientTransformation:
    """SAM's direction g / ‖g‖, with one Euclidean norm over all leaves.

    The norm is accumulated in at least float32. A zero gradient gives a zero direction.

    References:
      Foret et al., Sharpness-Aware Minimization (arXiv 2010.01412), equation 2.
    """

    def update_fn(updates, state, params=None):
        del params
        return _tree.scale(_tree.safe_divide(1.0, _tree.norm(updates)), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def normalize_by_weights(eta: float = 0.01) -> optax.GradientTransformation:
    r"""ASAM's direction :math:`T^2 g / \|T g\|` with :math:`T = |w| + \eta`, elementwise.

    The perturbation of a weight is proportional to its size. The measured sharpness therefore does
    not change when one layer is scaled up and the next one down.

    Args:
      eta: η >= 0, which lets weights near zero be perturbed, too.

    References:
      Kwon et al., ASAM (arXiv 2102.11600), equation 8 and algorithm 1.
    """
    _check.check_number("eta", eta, low=0)

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("normalize_by_weights needs params.")
        size = jax.tree.map(
            lambda w: jnp.abs(w).astype(w.dtype) + jnp.asarray(eta, w.dtype), params
        )
        scaled = jax.tree.map(jnp.multiply, size, updates)
        inverse_norm = _tree.safe_divide(1.0, _tree.norm(scaled))
        return _tree.scale(inverse_norm, jax.tree.map(jnp.multiply, size, scaled)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


class SubtractEmaState(NamedTuple):
    """State of ``subtract_ema``.

    Attributes:
      is_started: bool scalar, whether there has been a gradient.
      ema: the moving average of the gradients, shaped like the parameters.
    """

    is_started: jax.Array
    ema: chex.ArrayTree


def subtract_ema(sigma: float = 1.0, decay: float = 0.9) -> optax.GradientTransformation:
    r"""Friendly SAM's :math:`g - \sigma m`, the part of a gradient that is specific to its batch.

    m is the moving average of the previous gradients, :math:`m \leftarrow \lambda m + (1 - \lambda)
    g`. It starts at the first gradient, which is passed on unchanged. Keeps one buffer shaped like
    the parameters.

    Args:
      sigma: σ >= 0; 0 passes gradients on unchanged.
      decay: λ in [0, 1).

    References:
      Li et al., Friendly Sharpness-Aware Minimization (arXiv 2403.12350), and its official code.
    """
    _check.check_number("sigma", sigma, low=0)
    _check.check_number("decay", decay, low=0, below=1)

    def init_fn(params):
        return SubtractEmaState(jnp.zeros([], bool), jax.tree.map(jnp.zeros_like, params))

    def update_fn(updates, state, params=None):
        del params
        direction = _tree.subtract(updates, _tree.scale(sigma, state.ema))
        ema = _tree.add(_tree.scale(decay, state.ema), _tree.scale(1 - decay, updates))
        direction = _tree.where(state.is_started, direction, updates)
        ema = _tree.where(state.is_started, ema, updates)
        return direction, SubtractEmaState(jnp.ones([], bool), ema)

    return optax.GradientTransformation(init_fn, update_fn)


class RandomMaskState(NamedTuple):
    """State of ``random_mask``: ``key``, uint32 (2,), folded with the step for each mask."""

    key: jax.Array


def random_mask(
    beta: float, per: Literal["coordinate", "tensor"] = "coordinate", seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""ESAM's stochastic weight perturbation: keeps a random share β and divides it by β.

    Args:
      beta: β in (0, 1]; 1 keeps everything.
      per: "coordinate" as in the paper, or "tensor" for whole leaves as in its code.
      seed: of the masks.

    References:
      Du et al., Efficient Sharpness-Aware Minimization (arXiv 2110.03141), section 3.1.
    """
    _check.check_number("beta", beta, above=0, high=1)
    _check.check_choice("per", per, ("coordinate", "tensor"))
    _check.check_seed(seed)

    def update_fn(updates, state, params=None, *, step, **extra_args):
        del params, extra_args
        keys = optax.tree.split_key_like(_random.step_key(state.key, step), updates)
        share = jnp.asarray(beta, jnp.float32)

        def mask(key, x):
            shape = () if per == "tensor" else x.shape
            is_kept = jax.random.uniform(key, shape, jnp.float32) < share
            return jnp.where(is_kept, x / jnp.asarray(beta, x.dtype), 0)

        return jax.tree.map(mask, keys, updates), state

    def init_fn(params):
        del params
        return RandomMaskState(_random.make_key(seed, "ascent.random_mask"))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore


class PreconditionState(NamedTuple):
    """State of ``precondition``.

    Attributes:
      num_gradients: int32 scalar, the number of gradients so far.
      second_moment: the moving average of g², shaped like the parameters.
    """

    num_gradients: jax.Array
    second_moment: chex.ArrayTree


def precondition(decay: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    r"""Divides a gradient by the root of its second moment, as Adam does.

    :math:`g / (\sqrt{\hat v} + \epsilon)` with :math:`v \leftarrow \beta v + (1 - \beta) g^2` and
    Adam's correction of its start. In front of ``normalize()`` it is the preconditioned
    perturbation that the authors of functional SAM propose for language models, with ‖ε‖ = ρ.
    (Their text could only be read in part. A public implementation divides by the norm of the
    gradient before the preconditioning, which leaves the length of ε open.) Keeps one buffer shaped
    like the parameters, which is updated on sampled steps only.

    Args:
      decay: β in [0, 1).
      eps: ε > 0, added to the root.

    References:
      Singh et al., Avoiding spurious sharpness minimization broadens applicability of SAM (arXiv
      2502.02407).
    """
    _check.check_number("decay", decay, low=0, below=1)
    _check.check_number("eps", eps, above=0)

    def init_fn(params):
        zeros = jax.tree.map(lambda p: jnp.zeros_like(jnp.real(p)), params)
        return PreconditionState(jnp.zeros([], jnp.int32), zeros)

    def update_fn(updates, state, params=None):
        del params
        count = jnp.asarray(optax.safe_increment(state.num_gradients))

        def moment(v, g):
            old = jnp.asarray(decay, v.dtype)
            return old * v + (1 - old) * jnp.real(g * jnp.conj(g))

        second_moment = jax.tree.map(moment, state.second_moment, updates)

        def divided(g, v):
            correction = 1 - jnp.asarray(decay, v.dtype) ** count.astype(v.dtype)
            return g / (jnp.sqrt(v / correction) + jnp.asarray(eps, v.dtype)).astype(g.dtype)

        return jax.tree.map(divided, updates, second_moment), PreconditionState(
            count, second_moment
        )

    return optax.GradientTransformation(init_fn, update_fn)


def merged_lora(
    scale: float = 1.0, *, factors: tuple[str, str] = ("a", "b")
) -> optax.GradientTransformation:
    r"""FMLoRA's direction: SAM in the space of the merged weights, for LoRA factors.

    For merged weights :math:`W = W_0 + s\, a b` with factors a (inputs, r) and b (r, outputs), the
    gradient by b gives :math:`\hat G = \frac1s\, a (a^\top a)^{-1} \nabla_b L`, the part of
    :math:`\nabla_W L` in the column space of a. SAM's perturbation of the merged weights,
    :math:`\rho\, \hat G / \|\hat G\|` with one norm over all pairs, is transferred to b:

    .. math::
        \varepsilon_b = \frac{\rho}{s}\,
        \frac{(a^\top a)^{-1} \nabla_b L}{\sqrt{\sum \langle \nabla_b L,
        (a^\top a)^{-1} \nabla_b L \rangle}}, \qquad \varepsilon_a = 0.

    Perturbing a and b each by its own gradient, as plain SAM does, mixes the two perturbations in
    the product. All other parameters are not perturbed. Costs one r × r solve for each pair.

    Args:
      scale: s > 0, α / r in LoRA's notation.
      factors: the names of a and b in the mappings that hold them: ``("lora_a", "lora_b")`` for
        ``flax.nnx.LoRA``. a has shape (inputs, r), b (r, outputs).

    Raises:
      ValueError: when it is used, if the parameters hold no pair of these names, or one of other
        shapes.

    References:
      Deng et al., Efficiently Seeking Flat Minima for Better Generalization in Fine-Tuning Large
      Language Models and Beyond (arXiv 2508.00522). No code was available; the formula is derived
      from its idea that a perturbation of the merged weights is transferred to one factor.
    """
    _check.check_number("scale", scale, above=0)

    def is_pair(node):
        return isinstance(node, Mapping) and all(name in node for name in factors)

    def init_fn(params):
        pairs = [x for x in jax.tree.leaves(params, is_leaf=is_pair) if is_pair(x)]
        for pair in pairs:
            a, b = (jax.tree.leaves(pair[name])[0] for name in factors)
            if not (a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]):
                raise ValueError(
                    f"factors {factors} must have shapes (inputs, r) and (r, outputs), got"
                    f" {a.shape} and {b.shape}."
                )
        if jax.tree.leaves(params) and not pairs:
            raise ValueError(
                f"factors must name the two LoRA factors of a mapping in the parameters, got"
                f" {factors}. The parameters are {jax.tree.structure(params)}."
            )
        return optax.EmptyState()

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("merged_lora needs params.")
        nodes, structure = jax.tree.flatten(updates, is_leaf=is_pair)
        weights = structure.flatten_up_to(params)
        solved, squares = [], jnp.zeros([], _tree.scalar_dtype(updates))
        for node, pair in zip(nodes, weights, strict=True):
            direction = jax.tree.map(jnp.zeros_like, node)
            if is_pair(node):
                (a,), (grad_b,) = (
                    jax.tree.leaves(pair[factors[0]]),
                    jax.tree.leaves(node[factors[1]]),
                )
                gram = jnp.matmul(a.T, a, precision="highest")
                ridge = 1e-6 * jnp.trace(gram) / len(gram) + jnp.finfo(gram.dtype).tiny
                eye = jnp.eye(len(gram), dtype=gram.dtype)
                x = jnp.linalg.solve(gram + ridge.astype(gram.dtype) * eye, grad_b)
                squares += jnp.sum(grad_b * x).astype(squares.dtype)
                direction = _with_leaf(direction, factors[1], x)
            solved.append(direction)
        factor = _tree.safe_divide(1.0, jnp.sqrt(squares)) / jnp.asarray(scale, squares.dtype)
        return _tree.scale(factor, jax.tree.unflatten(structure, solved)), state

    return optax.GradientTransformation(init_fn, update_fn)


def _with_leaf(mapping, name, value):
    """A copy of the mapping with another array under a name."""
    structure = jax.tree.structure(mapping[name])
    copy = jax.tree.map(lambda x: x, mapping)
    copy[name] = jax.tree.unflatten(structure, [value])
    return copy
