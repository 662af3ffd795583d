"""Sharpness, curvature and landscape of a loss. For evaluation, not for train steps.

A loss is a function ``params -> scalar`` of any pytree of real arrays, with the batch closed over.
bfloat16 and float16 parameters are converted to float32 before the loss is called, because rounding
would otherwise hide a small step or a second derivative. All of these functions can be jitted.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer

from arsam_jax import _check, _random, _tree
from arsam_jax._convolutions import fast_convolutions

__all__ = [
    "Spectrum",
    "filter_normalized_direction",
    "hessian_spectrum",
    "loss_landscape",
    "plane_through",
    "sharpness",
    "spectral_density",
    "top_hessian_eigenvalue",
]


def sharpness(loss_fn: Callable[[Any], Any], params: Any, rho: chex.Numeric) -> jax.Array:
    r"""How much the loss rises along the gradient: :math:`L(w + \rho\, g / \|g\|) - L(w)`.

    To second order this is :math:`\rho \|g\| + \tfrac{\rho^2}{2}\, g^\top H g / \|g\|^2`, which is
    at most :math:`\rho \|g\| + \tfrac{\rho^2}{2} \lambda_{\max}(H)`. It is 0 where the gradient is
    0. Costs one gradient and one forward pass.

    Args:
      loss_fn: L, ``params -> scalar``.
      params: w, any pytree of real arrays.
      rho: ρ >= 0, the radius.

    Returns:
      A scalar, at least float32.

    Raises:
      TypeError, ValueError: for a bad ``rho``, a loss that is no real scalar, or params that are
        not real floating point arrays.

    References:
      Foret et al., Sharpness-Aware Minimization (arXiv 2010.01412), equation 2.
    """
    _check.check_number("rho", rho, low=0)
    params, loss_fn = _widen(params, loss_fn)
    loss, grads = jax.value_and_grad(loss_fn)(params)
    factor = _tree.safe_divide(rho, _norm(grads))
    return loss_fn(_tree.add(params, _tree.scale(factor, grads))) - loss


def top_hessian_eigenvalue(
    loss_fn: Callable[[Any], Any], params: Any, *, num_iterations: int = 20, seed: int = 0
) -> jax.Array:
    r"""The largest eigenvalue of the Hessian of the loss, by the Lanczos iteration.

    From a random unit vector :math:`v_1` it takes products :math:`H v_j`, the derivative of the
    gradient along :math:`v_j`, and

    .. math::
        \alpha_j = \langle v_j, H v_j \rangle, \qquad
        \beta_j v_{j+1} = H v_j - \alpha_j v_j - \beta_{j-1} v_{j-1},
        \qquad \|v_{j+1}\| = 1.

    The result is the largest eigenvalue of the tridiagonal matrix of the α and β. It approaches
    :math:`\lambda_{\max}(H)` from below, faster than power iteration, and is the largest
    eigenvalue, not the one of largest magnitude. Vectors are not reorthogonalized. That repeats
    eigenvalues that have converged but does not move them, so only three vectors shaped like the
    parameters are kept. The error in float32 is at least about :math:`10^{-6}` of the largest
    magnitude among the eigenvalues. Costs ``num_iterations`` Hessian-vector products of about two
    gradients each.

    Args:
      loss_fn: L, ``params -> scalar``, twice differentiable: forward over reverse, so a function
        with ``jax.custom_vjp`` inside must allow forward differentiation of its rule.
      params: w, any pytree of real arrays with at least one element.
      num_iterations: >= 1. 20 iterations give a separated eigenvalue to three digits or more; as
        many as there are distinct eigenvalues give it to rounding.
      seed: of the first vector.

    Returns:
      A scalar, at least float32; NaN if the loss has no finite second derivative.

    Raises:
      TypeError, ValueError: for a bad argument, a loss that is no real scalar, or params that are
        not real floating point arrays.

    References:
      Golub and Van Loan, Matrix Computations, chapter 10; Ghorbani et al., An Investigation into
      Neural Net Optimization via Hessian Eigenvalue Density (arXiv 1901.10159).
    """
    _check.check_static("num_iterations", num_iterations)
    _check.check_integer("num_iterations", num_iterations, low=1)
    _check.check_seed(seed)
    params, loss_fn = _widen(params, loss_fn)
    hessian_product = _hessian_product(loss_fn, params)

    def iterate(carry, _):
        previous, vector, beta, largest = carry
        product = hessian_product(vector)
        alpha = _tree.dot(vector, product)
        residual = _tree.subtract(
            _tree.subtract(product, _tree.scale(alpha, vector)), _tree.scale(beta, previous)
        )
        largest = jnp.maximum(largest, _norm(product))
        next_beta = _nonzero(_norm(residual), largest)
        following = _tree.scale(_tree.safe_divide(1, next_beta), residual)
        is_alive = beta > 0
        return (vector, following, next_beta, largest), (alpha, next_beta, is_alive)

    first = _random_unit(params, seed)
    zeros = jax.tree.map(jnp.zeros_like, first)
    one = jnp.ones_like(_tree.norm(first))
    _, (alpha, beta, is_alive) = jax.lax.scan(
        iterate, (zeros, first, one, 0 * one), length=num_iterations
    )
    matrix, scale = _tridiagonal(_filled(alpha, is_alive), beta)
    return scale * jnp.linalg.eigvalsh(matrix)[-1]


class Spectrum(NamedTuple):
    """The result of ``hessian_spectrum``: for each probe, points and their weights.

    Attributes:
      nodes: (num_probes, k), the eigenvalues that each probe finds, ascending.
      weights: (num_probes, k), >= 0; those of a probe add up to 1.
    """

    nodes: jax.Array
    weights: jax.Array


def hessian_spectrum(
    loss_fn: Callable[[Any], Any],
    params: Any,
    *,
    num_iterations: int = 40,
    num_probes: int = 1,
    seed: int = 0,
) -> Spectrum:
    r"""The spectral density of the Hessian of the loss, by stochastic Lanczos quadrature.

    Each probe starts the Lanczos iteration at :math:`v = (\pm 1, \dots, \pm 1) / \sqrt{n}` with
    random signs. The eigenvalues θ of the resulting tridiagonal matrix T are the nodes, and the
    squares of the first components of its eigenvectors u are the weights:

    .. math::
        \sum_i \omega_i f(\theta_i) \approx v^\top f(H)\, v, \qquad
        T u_i = \theta_i u_i, \qquad \omega_i = u_{i1}^2.

    This is exact for polynomials f of degree below 2k, and the mean of :math:`v^\top f(H)\, v` over
    probes is :math:`\operatorname{tr} f(H) / n`. So n times the weighted mean of the nodes
    estimates the trace of H, and that of their squares the trace of H². The nodes at both ends
    approach the extreme eigenvalues.

    Every vector is made orthogonal to all earlier ones, twice, so that no eigenvalue is repeated.
    The k vectors of one probe at a time are kept, each shaped like the parameters. If a probe is
    exhausted before k iterations, because there are fewer distinct eigenvalues, the remaining nodes
    lie inside the range of the others and have no weight. In float32 a group of eigenvalues
    narrower than about :math:`10^{-5}` of the one of largest magnitude is not resolved
    (:math:`10^{-14}` in float64), and appears as one or a few nodes.

    Costs ``num_probes * k`` Hessian-vector products of about two gradients each.

    Args:
      loss_fn: L, ``params -> scalar``, twice differentiable: see ``top_hessian_eigenvalue``.
      params: w, any pytree of real arrays, n numbers in all, n >= 1.
      num_iterations: >= 1. k is this number, or n if that is smaller.
      num_probes: >= 1. The error of a moment falls with its square root, and is already small for
        one probe if n is large.
      seed: of the probes.

    Returns:
      A ``Spectrum``, at least float32; NaN if the loss has no finite second derivative.
      ``spectral_density`` makes a curve of it.

    Raises:
      TypeError, ValueError: for a bad argument, a loss that is no real scalar, or params that are
        not real floating point arrays.

    References:
      Ghorbani et al., An Investigation into Neural Net Optimization via Hessian Eigenvalue Density
      (arXiv 1901.10159); Yao et al., PyHessian (arXiv 1912.07145).
    """
    for name, value in (("num_iterations", num_iterations), ("num_probes", num_probes)):
        _check.check_static(name, value)
        _check.check_integer(name, value, low=1)
    _check.check_seed(seed)
    params, loss_fn = _widen(params, loss_fn)
    num_iterations = min(num_iterations, _num_params(params))
    hessian_product = _hessian_product(loss_fn, params)

    def of_probe(key):
        alpha, beta = _lanczos(hessian_product, _random_signs(params, key), num_iterations)
        matrix, scale = _tridiagonal(alpha, beta)
        nodes, vectors = jnp.linalg.eigh(matrix)
        return Spectrum(scale * nodes, jnp.square(vectors[0]))

    return jax.lax.map(of_probe, jax.random.split(_make_key(seed, "measure.spectrum"), num_probes))


def spectral_density(spectrum: Spectrum, grid: chex.Array, *, width: chex.Numeric) -> jax.Array:
    r"""The curve of a spectrum: a normal distribution at every node, scaled by its weight.

    .. math::
        \phi(t) = \frac{1}{P} \sum_{p=1}^{P} \sum_i \omega_{pi}\,
        \frac{1}{\sqrt{2 \pi}\, \sigma} \exp\Big({-\frac{(t - \theta_{pi})^2}{2 \sigma^2}}\Big)

    It integrates to 1. Plot it on a logarithmic axis: for a network nearly all of the weight is
    near 0, and each outlier has one n-th of it.

    Args:
      spectrum: of P probes: nodes and weights of one shape, (P, k).
      grid: (m,), where to evaluate it.
      width: σ > 0; a hundredth of the range of the nodes is a good start.

    Returns:
      (m,), in the dtype of the spectrum.

    Raises:
      TypeError, ValueError: for a bad ``width``, a spectrum with other axes (as from ``vmap``), or
        a grid that is not a vector.

    References:
      Ghorbani et al. (arXiv 1901.10159), section 2.
    """
    _check.check_number("width", width, above=0)
    nodes, weights = _check_spectrum(spectrum)
    num_probes = nodes.shape[0]
    nodes, weights = nodes.ravel(), weights.ravel()
    (grid,) = _check_vectors("grid", [grid], nodes.dtype)
    width = jnp.asarray(width, nodes.dtype)
    bells = jax.scipy.stats.norm.pdf((grid[:, None] - nodes[None]) / width) / width
    return jnp.dot(bells, weights, precision="highest") / num_probes


def filter_normalized_direction(params: Any, *, seed: int = 0, filter_axis: int = -1) -> Any:
    r"""A random direction in which every filter has the norm of that filter of the parameters.

    .. math::
        d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|} \|w_{ij}\|,
        \qquad d \sim \mathcal N(0, I)

    for the filter j of the leaf i. A ReLU network computes the same function when one layer is
    scaled up and the next one down. Along such a direction its loss does not change either, so
    curves of two networks can be compared. Biases and BatchNorm parameters, that is all leaves with
    fewer than two axes, stay fixed: d = 0. Costs no gradient.

    The same axis has to enumerate the filters of every leaf. This does not hold for embeddings,
    where a row is a filter, and for attention kernels in Flax, (features, heads, head size): call
    this function separately for such leaves, embeddings with ``filter_axis=0`` and attention
    kernels as matrices. Nor does it hold for leaves that ``scan`` has stacked, where even biases
    have two axes: ``vmap`` this function over the layers, with a seed for each.

    Args:
      params: w, any pytree of real arrays.
      seed: of the direction. Two seeds give two nearly orthogonal directions.
      filter_axis: the axis of a leaf that enumerates its filters: the last one (output features)
        for Flax kernels and ``x @ w``, 0 for PyTorch kernels.

    Returns:
      d, shaped like ``params``, at least float32.

    Raises:
      TypeError, ValueError: for a bad argument, or params that are not real floating point arrays.

    References:
      Li et al., Visualizing the Loss Landscape of Neural Nets (arXiv 1712.09913), section 4.
    """
    _check.check_seed(seed)
    _check.check_static("filter_axis", filter_axis)
    _check.check_integer("filter_axis", filter_axis, low=-(2**31))
    params = _widen_params(params)

    def direction(w, key):
        if w.ndim < 2:
            return jnp.zeros_like(w)
        if not -w.ndim <= filter_axis < w.ndim:
            raise ValueError(
                f"filter_axis must be an axis of every leaf of two axes or more, got {filter_axis}"
                f" for a leaf of shape {w.shape}."
            )
        axes = tuple(i for i in range(w.ndim) if i != filter_axis % w.ndim)
        d = jax.random.normal(key, w.shape, w.dtype)
        return d * _tree.safe_divide(_lengths(w, axes), _lengths(d, axes))

    return jax.tree.map(direction, params, _keys_like(params, _make_key(seed, "measure.direction")))


def plane_through(origin: Any, first: Any, second: Any) -> tuple[tuple[Any, Any], jax.Array]:
    r"""The plane through three sets of parameters, for ``loss_landscape``.

    .. math::
        u = \frac{w_1 - w_0}{\|w_1 - w_0\|}, \qquad
        v = \frac{(w_2 - w_0) - \langle w_2 - w_0, u \rangle u}{\|\cdot\|}

    Coordinates are therefore distances in the space of the parameters. Costs no gradient.

    Args:
      origin: w₀, any pytree of real arrays.
      first: w₁, shaped like it.
      second: w₂, shaped like it and not on the line through the others.

    Returns:
      The directions ``(u, v)``, at least float32, and the coordinates of the three, (3, 2).

    Raises:
      TypeError, ValueError: for params that are not real floating point arrays, of different
        shapes, or on one line (unless traced: then v is 0). Non-finite parameters give NaN.

    References:
      Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs (arXiv
      1802.10026).
    """
    _check_not_empty("origin", origin)
    _check.check_same_shapes("first", first, "origin", origin)
    _check.check_same_shapes("second", second, "origin", origin)
    origin, first, second = map(_widen_params, (origin, first, second))
    first, second = (_tree.subtract(end, origin) for end in (first, second))
    length, reach = _norm(first), _norm(second)
    u = _tree.scale(_tree.safe_divide(1, length), first)
    along = _tree.dot(second, u)
    rest = _tree.subtract(second, _tree.scale(along, u))
    height = _nonzero(_norm(rest), reach)
    if not isinstance(height, Tracer) and (length == 0 or height == 0):
        raise ValueError(
            "second must not lie on the line through origin and first, nor first at origin, got"
            f" second at a distance of {float(height)} from it and first at {float(length)} from"
            " origin. Take other parameters, or a line: directions of one difference."
        )
    v = _tree.scale(_tree.safe_divide(1, height), rest)
    zero = jnp.zeros_like(length)
    points = jnp.stack([zero, zero, length, zero, along, height]).reshape(3, 2)
    return (u, v), points


def loss_landscape(
    loss_fn: Callable[[Any], Any],
    params: Any,
    directions: Sequence[Any],
    coordinates: Sequence[chex.Array],
    *,
    batch_size: int | None = None,
) -> jax.Array:
    r"""The loss on a grid around the parameters: a curve, a surface, or more dimensions.

    .. math::
        L\big(w + a_i\, d_1 + b_j\, d_2\big)

    for directions from ``filter_normalized_direction``, ``plane_through`` or a gradient. Costs one
    forward pass per point, one point after another.

    With BatchNorm decide which statistics ``loss_fn`` closes over: running averages belong to the
    parameters at the origin, so use batch statistics elsewhere.

    Args:
      loss_fn: L, ``params -> scalar``.
      params: w, any pytree of real arrays.
      directions: a tuple or list of trees shaped like ``params``.
      coordinates: one vector per direction, of the steps to take along it: a, b.
      batch_size: how many points to evaluate at once, each with its own copy of the parameters.

    Returns:
      The losses, ``(len(a),)`` or ``(len(a), len(b))``, at least float32.

    Raises:
      TypeError, ValueError: for a bad argument, a loss that is no real scalar, or params that are
        not real floating point arrays.

    References:
      Li et al., Visualizing the Loss Landscape of Neural Nets (arXiv 1712.09913).
    """
    for name, value in (("directions", directions), ("coordinates", coordinates)):
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name} must be a tuple or a list, one for each axis, got {value!r}.")
    if not len(directions) == len(coordinates) > 0:
        raise ValueError(
            "directions and coordinates must have the same length, at least 1, got the lengths"
            f" {len(directions)} and {len(coordinates)}."
        )
    for i, direction in enumerate(directions):
        _check.check_same_shapes(f"directions[{i}]", direction, "params", params)
    if batch_size is not None:
        _check.check_static("batch_size", batch_size)
        _check.check_integer("batch_size", batch_size, low=1)
    params, loss_fn = _widen(params, loss_fn)
    directions = [_widen_params(direction, "directions") for direction in directions]
    coordinates = _check_vectors("coordinates", coordinates, _widest(params))
    grid = jnp.meshgrid(*coordinates, indexing="ij")

    def loss_at(point):
        moved = params
        for step, direction in zip(point, directions, strict=True):
            moved = _tree.add(moved, _tree.scale(step, direction))
        return fast_convolutions(loss_fn)(moved)

    losses = jax.lax.map(loss_at, [x.ravel() for x in grid], batch_size=batch_size)
    return losses.reshape(grid[0].shape)


def _hessian_product(loss_fn, params):
    return fast_convolutions(lambda vector: jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1])


def _lanczos(product, first, num_iterations):
    """α and β, (k,), of the iteration with full reorthogonalization."""

    def without(basis, vector):
        parts = jax.vmap(_tree.dot, (0, None))(basis, vector)
        return jax.tree.map(
            lambda x, b: x - jnp.tensordot(parts.astype(b.dtype), b, 1, precision="highest"),
            vector,
            basis,
        )

    def iterate(carry, i):
        basis, vector, beta, largest = carry
        is_alive = beta > 0
        basis = jax.tree.map(lambda b, x: b.at[i].set(x), basis, vector)
        image = product(vector)
        alpha = _tree.dot(vector, image)
        residual = without(basis, without(basis, image))  # twice is enough
        largest = jnp.maximum(largest, _norm(image))
        beta = _nonzero(_norm(residual), largest)
        following = _tree.scale(_tree.safe_divide(1, beta), residual)
        return (basis, following, beta, largest), (alpha, beta, is_alive)

    basis = jax.tree.map(lambda x: jnp.zeros((num_iterations, *x.shape), x.dtype), first)
    one = jnp.ones_like(_tree.norm(first))
    _, (alpha, beta, is_alive) = jax.lax.scan(
        iterate, (basis, first, one, 0 * one), jnp.arange(num_iterations)
    )
    return _filled(alpha, is_alive), beta


def _nonzero(length, largest):
    """0 for a length that is rounding beside the largest, NaN if the largest is not finite."""
    length = jnp.where(length <= 32 * jnp.finfo(length.dtype).eps * largest, 0, length)
    return jnp.where(jnp.isfinite(largest), length, jnp.nan)


def _norm(tree):
    """Euclidean norm over all leaves, scaled so that squares neither underflow nor overflow."""
    leaves = [x.astype(_widest(tree)) for x in jax.tree.leaves(tree)]
    peak = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in leaves]))
    return peak * _tree.norm([_tree.safe_divide(x, peak) for x in leaves])


def _lengths(x, axes):
    """Euclidean norm over these axes, kept; squares neither underflow nor overflow."""
    peak = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    squares = jnp.square(_tree.safe_divide(x, peak))
    return peak * jnp.sqrt(jnp.sum(squares, axes, keepdims=True))


def _filled(alpha, is_alive):
    """After β = 0 the iteration is exhausted: α_1, inside the spectrum, fills the rest."""
    return jnp.where(jnp.cumprod(is_alive.astype(jnp.int32)) > 0, alpha, alpha[0])


def _tridiagonal(alpha, beta):
    """The matrix, divided by its largest entry, and that entry, for solvers that do not scale."""
    matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    scale = jnp.max(jnp.abs(matrix))
    return _tree.safe_divide(matrix, scale), scale


def _random_unit(params, seed):
    vector = jax.tree.map(
        lambda x, key: jax.random.normal(key, x.shape, x.dtype),
        params,
        _keys_like(params, _make_key(seed, "measure.eigenvalue")),
    )
    return _tree.scale(1 / _tree.norm(vector), vector)


def _random_signs(params, key):
    """±1 everywhere, divided by the square root of their number."""
    length = _num_params(params) ** 0.5
    return jax.tree.map(
        lambda x, key: jax.random.rademacher(key, x.shape, x.dtype) / length,
        params,
        _keys_like(params, key),
    )


def _make_key(seed, stream):
    return jax.random.wrap_key_data(_random.make_key(seed, stream), impl="threefry2x32")


def _keys_like(tree, key):
    structure = jax.tree.structure(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(key, structure.num_leaves)))


def _num_params(params):
    return sum(map(jnp.size, jax.tree.leaves(params)))


def _widest(tree):
    """The dtype with the most bits."""
    return max((x.dtype for x in jax.tree.leaves(tree)), key=lambda kind: jnp.finfo(kind).bits)


def _check_spectrum(spectrum):
    """Nodes and weights, in at least float32."""
    if not isinstance(spectrum, tuple | list):
        raise TypeError(f"spectrum must be what hessian_spectrum returns, got {spectrum!r}.")
    arrays = [jnp.asarray(x) for x in spectrum]
    shapes = [x.shape for x in arrays]
    if not (len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 2):
        raise ValueError(
            "spectrum must be nodes and weights of one shape, (num_probes, k), got shapes"
            f" {', '.join(map(str, shapes))}. Of a single probe take nodes[None] and weights[None];"
            " of several networks vmap this function."
        )
    return _widen_params(arrays, "spectrum")


def _check_vectors(name, values, dtype):
    """Each value as an array of this dtype."""
    values = [_check_numbers(name, value) for value in values]
    for value in values:
        if jnp.ndim(value) != 1:
            raise ValueError(
                f"{name} must have one axis, such as jnp.linspace(-1, 1, 21), got {value!r}."
            )
    return [jnp.asarray(value, dtype) for value in values]


def _check_numbers(name, value):
    """The value as an array; it may be a list."""
    try:
        array = value if hasattr(value, "dtype") else jnp.asarray(value)
    except (TypeError, ValueError):  # strings, or lists of different lengths
        array = None
    kinds = (jnp.floating, jnp.integer)
    if array is None or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise TypeError(f"{name} must be real numbers, got {value!r}.")
    return array


def _check_not_empty(name, params):
    if not _num_params(params):
        raise ValueError(f"{name} must hold at least one number, got {params!r}.")


def _widen_params(params, name="params"):
    """In at least float32, checked."""
    for leaf in jax.tree.leaves(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"{name} must be real floating point arrays, got {leaf!r}.")
    return _tree.widen(params)


def _widen(params, loss_fn):
    """Both in at least float32, checked."""
    _check_not_empty("params", params)
    params = _widen_params(params)
    shape = jax.eval_shape(loss_fn, params)
    is_scalar = hasattr(shape, "dtype") and shape.shape == ()
    if not (is_scalar and jnp.issubdtype(shape.dtype, jnp.floating)):
        raise ValueError(f"loss_fn(params) must be a real scalar, got {shape!r}.")

    def wide_loss_fn(params):
        loss = loss_fn(params)
        return loss.astype(_tree.wide_dtype(loss))

    return params, wide_loss_fn
