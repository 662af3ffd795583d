"""Ascent directions: from a gradient to the direction of the perturbation.

An ascent is any ``optax.GradientTransformation``. The perturbation is ε = ρ · ascent(g). It runs on
sampled steps only, on gradients and parameters in at least float32, and receives ``params``,
``step`` (the step of training, int32 scalar) and the extra arguments of the update. Masks that
exclude parameters from the perturbation belong here::

    optax.chain(optax.masked(optax.set_to_zero(), is_bias), normalize())  # norm without biases
    optax.chain(normalize(), optax.masked(optax.set_to_zero(), is_bias))  # norm with biases

The masks of sparse SAM are in ``arsam_jax.sparse``.
"""

import functools
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
      num_gradients: int32 scalar, n, the number of gradients so far.
      second_moment: v, the moving average of g², real and shaped like the parameters.
    """

    num_gradients: jax.Array
    second_moment: chex.ArrayTree


def precondition(decay: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    r"""Divides a gradient by the root of its second moment, as Adam does.

    .. math::
        \frac{g}{\sqrt{\hat v} + \epsilon}, \qquad v \leftarrow \beta v + (1 - \beta)\, g^2, \qquad
        \hat v = \frac{v}{1 - \beta^n}

    after n gradients. In front of ``normalize()`` it is the preconditioned perturbation that the
    authors of functional SAM propose for language models, with ‖ε‖ = ρ. β = 0 gives the sign of
    the gradient, and a very large ϵ the gradient itself. v is updated on sampled steps only and
    belongs to this transformation, so that any base optimizer can follow. The authors gave no code
    that we could read, so the length of ε and where v comes from are our choice.

    Keeps one buffer shaped like the parameters, of the dtype of the gradients that it gets (at
    least float32 in a probe; real for complex parameters).

    Args:
      decay: β in [0, 1).
      eps: ϵ > 0, added to the root.

    Returns:
      An ascent whose state is a ``PreconditionState``.

    Example::

        direction = optax.chain(arsam_jax.ascent.precondition(), arsam_jax.ascent.normalize())
        tx = arsam_jax.sharpness_aware(0.1, probe=arsam_jax.probe.perturb(direction))

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
            return g / (_tree.root(v / correction) + jnp.asarray(eps, v.dtype)).astype(g.dtype)

        return jax.tree.map(divided, updates, second_moment), PreconditionState(
            count, second_moment
        )

    return optax.GradientTransformation(init_fn, update_fn)


def merged_lora(
    scale: float = 1.0, *, factors: tuple[str, str] = ("a", "b")
) -> optax.GradientTransformation:
    r"""FMLoRA's direction: SAM in the space of the merged weights, for LoRA factors.

    For merged weights :math:`W = W_0 + s\, a b` with factors a (inputs, r) and b (r, outputs), the
    gradient by W is estimated from the gradients by a and b, and SAM's perturbation of W is
    transferred to b alone:

    .. math::
        \hat G = \frac{1}{2s} \big( (a^\top)^+ \nabla_b L + \nabla_a L\, (b^\top)^+ \big), \qquad
        \varepsilon_b = \frac{\rho}{s}\, a^+ \frac{\hat G}{\|\hat G\|}, \qquad
        \varepsilon_a = 0

    with pseudo-inverses :math:`(\cdot)^+` and one norm for each pair, as in the authors' code. All
    other parameters are not perturbed. Plain SAM perturbs a and b each by its own gradient, and the
    two perturbations mix in the product. If a and b are invertible, W moves by SAM's perturbation
    :math:`\rho\, \nabla_W L / \|\nabla_W L\|`. If b is 0, as at the start, the second term is 0.

    Costs two r × r solves and a few products of the size of a and b for each pair. No array has
    the size of W. Keeps nothing.

    Args:
      scale: s > 0, α / r in LoRA's notation. (The authors' code uses 0.5.)
      factors: the names of a and b in the paths of the parameters: ``("lora_a", "lora_b")`` for
        ``flax.nnx.LoRA``. Two leaves whose paths differ by these names alone are a pair. Further
        axes in front are further pairs, as in layers stacked for ``jax.lax.scan``.

    Raises:
      ValueError: in ``init``, if the parameters hold no pair of these names, or one of other
        shapes.

    Example::

        probe = arsam_jax.probe.perturb(arsam_jax.ascent.merged_lora(scale=2.0))
        tx = optax.chain(arsam_jax.sharpness_aware(0.05, probe=probe), optax.adamw(1e-4))

    References:
      Deng et al., Efficiently Seeking Flat Minima for Better Generalization in Fine-Tuning Large
      Language Models and Beyond (arXiv 2508.00522), equations 10 to 15, and the authors' code. The
      paper's equation 13 also multiplies by the signs of the gradient. The code does not, nor does
      this function. A pseudo-inverse is computed here by solving with a Gram matrix, to whose
      diagonal 8 units of rounding of its mean (10⁻⁶ in float32) are added.
    """
    _check.check_number("scale", scale, above=0)
    if not (
        isinstance(factors, tuple)
        and len(set(factors)) == 2
        and all(isinstance(name, str) for name in factors)
    ):
        raise ValueError(f"factors must be the two names of a and b, got {factors!r}.")

    def init_fn(params):
        leaves = jax.tree.leaves(params)
        pairs = _pairs(params, factors)
        for place_a, place_b in pairs:
            a, b = (jnp.shape(leaves[place]) for place in (place_a, place_b))
            if len(a) < 2 or a[:-2] != b[:-2] or a[-1] != b[-2]:
                raise ValueError(
                    f"factors {factors} must have shapes (inputs, r) and (r, outputs), got"
                    f" {a} and {b}."
                )
        if leaves and not pairs:
            raise ValueError(
                f"factors must name the two LoRA factors in the paths of the parameters, got"
                f" {factors!r} for {_check.list_some(_tree.names(params))}."
            )
        return optax.EmptyState()

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("merged_lora needs params: ascent.update(updates, state, params).")
        grads, structure = jax.tree.flatten(updates)
        weights = structure.flatten_up_to(params)
        directions = [jnp.zeros_like(g) for g in grads]
        for place_a, place_b in _pairs(updates, factors):
            b_direction = _merged_direction(
                a=weights[place_a],
                b=weights[place_b],
                grad_a=grads[place_a],
                grad_b=grads[place_b],
            )
            directions[place_b] = b_direction / jnp.asarray(scale, b_direction.dtype)
        return jax.tree.unflatten(structure, directions), state

    return optax.GradientTransformation(init_fn, update_fn)


def _pairs(tree, factors):
    """The places of a and b among the leaves of a tree, for each pair."""
    found = {}
    for place, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        for which, name in enumerate(factors):
            if name in keys:
                last = len(keys) - 1 - keys[::-1].index(name)
                shared = (*keys[:last], None, *keys[last + 1 :])
                found.setdefault(shared, {})[which] = place
    return [(pair[0], pair[1]) for pair in found.values() if len(pair) == 2]


def _merged_direction(*, a, b, grad_a, grad_b):
    """s ε_b / ρ of one pair, from x and y with 2 s Ĝ = a x + y b."""
    multiply = functools.partial(jnp.matmul, precision="highest")
    gram_a, gram_b = multiply(a.mT, a), multiply(b, b.mT)
    x = _solve(gram_a, grad_b)
    y = _solve(gram_b, grad_a.mT).mT
    shared = multiply(multiply(a.mT, y), b)  # aᵀ y b
    square = jnp.sum(
        x * (multiply(gram_a, x) + 2 * shared), axis=(-2, -1), keepdims=True
    ) + jnp.sum(y * multiply(y, gram_b), axis=(-2, -1), keepdims=True)
    norm = _tree.root(jnp.maximum(square, 0))
    return (x + _solve(gram_a, shared)) * _tree.safe_divide(1.0, norm)


def _solve(gram, right):
    """The solution of a system with a Gram matrix; 0 where both are 0."""
    size = gram.shape[-1]
    mean = jnp.trace(gram, axis1=-2, axis2=-1) / size
    limits = jnp.finfo(gram.dtype)
    ridge = (8 * limits.eps * mean + limits.tiny).astype(gram.dtype)[..., None, None]
    eye = jnp.broadcast_to(jnp.eye(size, dtype=gram.dtype), gram.shape)
    return jnp.linalg.solve(gram + ridge * eye, right)
