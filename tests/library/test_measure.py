"""Sharpness, curvature and landscapes against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from arsam_jax import measure
from arsam_jax.measure import (
    Spectrum,
    filter_normalized_direction,
    hessian_spectrum,
    loss_landscape,
    plane_through,
    sharpness,
    spectral_density,
    top_hessian_eigenvalue,
)

RNG = np.random.default_rng(0)


def symmetric(eigenvalues):
    rng = np.random.default_rng(0)  # the same in each test, whichever ran before
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    return jnp.asarray(q @ np.diag(eigenvalues) @ q.T, jnp.float32)


def quadratic(matrix, linear):
    def loss_fn(w):
        return 0.5 * jnp.vdot(w, jnp.dot(matrix, w, precision="highest")) + jnp.vdot(linear, w)

    return loss_fn


@pytest.mark.parametrize(
    "eigenvalues",
    [
        (5.0, 3.0, 1.0, 0.5, 0.0, -1.0),
        (2.0, 1.0, 0.0, 0.0, -9.0),  # the largest, not that of largest magnitude
        (-1.0, -2.0, -3.0),
        (4.0, 4.0, 4.0),  # every vector is an eigenvector
        (7.0,),
        (0.0, 0.0),
        (1e-12, 5e-13, 0.0),
        (3e12, 1e12, 0.0),
    ],
)
def test_top_eigenvalue_of_a_quadratic(eigenvalues):
    loss_fn = quadratic(symmetric(eigenvalues), jnp.ones(len(eigenvalues)))
    w = jnp.asarray(RNG.normal(size=len(eigenvalues)), jnp.float32)
    found = jax.jit(lambda w: top_hessian_eigenvalue(loss_fn, w, num_iterations=20))(w)
    assert found.dtype == jnp.float32
    scale = max(map(abs, eigenvalues))
    np.testing.assert_allclose(found, max(eigenvalues), rtol=0, atol=3e-5 * scale)


def test_top_eigenvalue_of_a_wide_spectrum():
    eigenvalues = np.concatenate([[100.0, 60.0], np.linspace(0, 10, 198)])
    loss_fn = quadratic(symmetric(eigenvalues), jnp.zeros(200))
    found = top_of(loss_fn, jnp.zeros(200), num_iterations=15)
    np.testing.assert_allclose(found, 100, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_curvature_of_any_scale(scale):
    """The squares of the products underflow or overflow in float32."""
    loss_fn = quadratic(scale * symmetric((1.0, 2.0, 3.0, 4.0)), jnp.zeros(4))
    top = top_of(loss_fn, jnp.ones(4))
    np.testing.assert_allclose(top / scale, 4, rtol=1e-5)
    spectrum = spectrum_of(loss_fn, jnp.ones(4))
    np.testing.assert_allclose(spectrum.nodes / scale, [[1, 2, 3, 4]], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20])
def test_sharpness_of_any_scale(scale):
    found = sharpness(lambda w: scale * jnp.square(w).sum(), jnp.asarray([3.0, 4.0]), 1.0)
    np.testing.assert_allclose(found / scale, 11, rtol=1e-5)  # 6² − 5²


def test_the_bulk_beside_an_outlier_is_resolved_as_documented():
    """As wide as 10⁻⁴ of the outlier it is, and has no inner nodes at 10⁻⁶."""
    for outlier, is_resolved in ((1e4, True), (1e6, False)):
        eigenvalues = jnp.linspace(0, 1, 100).at[0].set(outlier)
        loss_fn = quadratic(jnp.diag(eigenvalues), jnp.zeros(100))
        spectrum = spectrum_of(loss_fn, jnp.zeros(100), num_iterations=30)
        bulk = spectrum.nodes[(spectrum.weights > 1e-5) & (spectrum.nodes < 2)]
        assert (bulk.size > 20) == is_resolved
        np.testing.assert_allclose(spectrum.nodes.max(), outlier, rtol=1e-5)


def top_of(loss_fn, params, **kwargs):
    return jax.jit(lambda p: top_hessian_eigenvalue(loss_fn, p, **kwargs))(params)


def spectrum_of(loss_fn, params, **kwargs):
    return jax.jit(lambda p: hessian_spectrum(loss_fn, p, **kwargs))(params)


def network_loss(params):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(12, 3)), jnp.float32)
    kernel, (bias, scale) = params["kernel"], params["rest"]
    hidden = jnp.tanh(x @ kernel + jnp.broadcast_to(bias, (12, 4)))
    return jnp.square(scale * hidden.sum(1) - jnp.sin(x.sum(1))).mean()


def network_params(dtype=jnp.float32):
    rng = np.random.default_rng(2)
    kernel, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
    rest = (jnp.asarray(bias, dtype), jnp.asarray(0.7, dtype))
    return {"kernel": jnp.asarray(kernel, dtype), "rest": rest, "none": None}


def dense_hessian(params):
    flat, unravel = ravel_pytree(params)
    return jax.jit(jax.hessian(lambda flat: network_loss(unravel(flat))))(flat)


def test_top_eigenvalue_of_a_pytree():
    params = network_params()
    found = jax.jit(lambda p: top_hessian_eigenvalue(network_loss, p, seed=3))(params)
    expected = np.linalg.eigvalsh(np.asarray(dense_hessian(params), np.float64))[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_half_precision_parameters_are_widened():
    params = network_params(jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    for measured in (
        lambda p: top_hessian_eigenvalue(network_loss, p),
        lambda p: sharpness(network_loss, p, 1e-3),
        lambda p: hessian_spectrum(network_loss, p, num_iterations=3).nodes,
        lambda p: loss_landscape(
            network_loss, p, [filter_normalized_direction(p)], [jnp.linspace(0, 1, 2)]
        ),
        lambda p: plane_through(p, *(jax.tree.map(x, p) for x in (jnp.sin, jnp.cos)))[1][0],
    ):
        measured = jax.jit(measured)
        assert measured(params).dtype == jnp.float32
        np.testing.assert_array_equal(measured(params), measured(wide))


def test_sharpness_of_a_quadratic():
    matrix, linear = symmetric((4.0, 2.0, 1.0)), jnp.asarray([1.0, -2.0, 0.5])
    w = jnp.asarray([0.3, 0.1, -0.4])
    g = matrix @ w + linear
    u = g / jnp.linalg.norm(g)
    rho = 0.3
    expected = rho * jnp.linalg.norm(g) + rho**2 / 2 * u @ matrix @ u
    found = jax.jit(lambda rho: sharpness(quadratic(matrix, linear), w, rho))(rho)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sharpness_of_a_pytree():
    params = network_params()
    grads, unravel = ravel_pytree(jax.grad(network_loss)(params))
    step = unravel(0.1 * grads / jnp.linalg.norm(grads))
    expected = network_loss(jax.tree.map(jnp.add, params, step)) - network_loss(params)
    np.testing.assert_allclose(sharpness(network_loss, params, 0.1), expected, rtol=1e-5)


def test_sharpness_is_zero_without_radius_or_gradient():
    w = jnp.asarray([1.0, 2.0])
    assert sharpness(lambda w: jnp.square(w).sum(), w, 0) == 0
    assert sharpness(lambda w: jnp.square(w).sum(), jnp.zeros(2), 0.1) == 0


def test_what_is_not_finite_shows():
    w = jnp.zeros(2)
    assert jnp.isnan(top_of(lambda w: jnp.sqrt(w).sum(), w))
    assert jnp.isnan(sharpness(lambda w: jnp.log(w).sum(), -jnp.ones(2), 0.1))
    overflowing = quadratic(jnp.diag(jnp.asarray([1.0, jnp.inf])), jnp.zeros(2))
    for num_iterations in (1, 5):
        top = top_of(overflowing, w, num_iterations=num_iterations)
        assert jnp.isnan(top)
        spectrum = spectrum_of(overflowing, w, num_iterations=num_iterations)
        assert jnp.isnan(spectrum.nodes).all()


@pytest.mark.parametrize(("largest", "found"), [(1.0, 0.0), (jnp.inf, jnp.nan), (jnp.nan, jnp.nan)])
def test_only_beside_a_finite_length_is_a_length_rounding(largest, found):
    np.testing.assert_equal(float(measure._nonzero(jnp.float32(1e-9), jnp.float32(largest))), found)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"num_iterations": 0}, ValueError, "num_iterations"),
        ({"num_iterations": 2.5}, TypeError, "num_iterations"),
        ({"num_iterations": jnp.array(2)}, TypeError, "num_iterations"),
        ({"seed": -1}, ValueError, "seed"),
        ({"params": {}}, ValueError, "params"),
        ({"params": jnp.arange(3)}, TypeError, "params"),
        ({"params": jnp.ones(3, jnp.complex64)}, TypeError, "params"),
        ({"loss_fn": lambda w: w}, ValueError, "loss_fn"),
        ({"loss_fn": lambda w: (w.sum(), w)}, ValueError, "loss_fn"),
    ],
)
def test_bad_arguments_of_the_eigenvalue(kwargs, error, match):
    with pytest.raises(error, match=match):
        top_hessian_eigenvalue(**({"loss_fn": jnp.sum, "params": jnp.ones(3)} | kwargs))


@pytest.mark.parametrize(
    ("rho", "error"), [(-0.1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_bad_radius(rho, error):
    with pytest.raises(error, match="rho"):
        sharpness(jnp.sum, jnp.ones(3), rho)


def moments(spectrum, n, degree):
    """n times the weighted sum of powers of the nodes, one a probe."""
    nodes, weights = np.asarray(spectrum.nodes, np.float64), np.asarray(spectrum.weights)
    return n * (weights * nodes**degree).sum(axis=1)


def test_spectrum_of_a_diagonal_quadratic_is_exact():
    """Of random signs each probe weighs all axes alike."""
    eigenvalues = np.repeat([7.0, 1.0, 0.0, -2.0], [1, 3, 5, 1])
    loss_fn = quadratic(jnp.diag(jnp.asarray(eigenvalues, jnp.float32)), jnp.ones(10))
    spectrum = spectrum_of(loss_fn, jnp.ones(10), num_iterations=4, num_probes=3)
    np.testing.assert_allclose(spectrum.nodes, [[-2, 0, 1, 7]] * 3, atol=1e-5)
    np.testing.assert_allclose(spectrum.weights, [[0.1, 0.5, 0.3, 0.1]] * 3, atol=1e-5)


@pytest.mark.parametrize("num_iterations", [5, 50])
def test_spectrum_breaks_down_where_few_eigenvalues_are_distinct(num_iterations):
    eigenvalues = np.repeat([7.0, 1.0, 0.0, -2.0], [1, 3, 5, 1])
    loss_fn = quadratic(symmetric(eigenvalues), jnp.zeros(10))
    spectrum = spectrum_of(loss_fn, jnp.zeros(10), num_iterations=num_iterations)
    assert spectrum.nodes.shape == spectrum.weights.shape == (1, min(num_iterations, 10))
    np.testing.assert_allclose(spectrum.weights.sum(axis=1), 1, rtol=1e-5)
    nodes = spectrum.nodes[spectrum.weights > 1e-5]
    np.testing.assert_allclose(nodes, [-2, 0, 1, 7], atol=2e-5)
    assert spectrum.nodes.min() > -2.001
    assert spectrum.nodes.max() < 7.001


@pytest.mark.parametrize("eigenvalues", [(3.0, 3.0, 3.0), (0.0, 0.0)])
def test_spectrum_of_one_or_no_curvature(eigenvalues):
    n = len(eigenvalues)
    loss_fn = quadratic(symmetric(eigenvalues), jnp.ones(n))
    spectrum = spectrum_of(loss_fn, jnp.ones(n))
    scale = max(eigenvalues)
    np.testing.assert_allclose(spectrum.weights.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(spectrum.nodes.max(), scale, rtol=1e-5)
    assert spectrum.nodes.min() >= min(eigenvalues) - 1e-5 * scale


def test_spectrum_has_the_moments_of_the_hessian():
    eigenvalues = np.concatenate([[40.0, 25.0], np.linspace(-1, 4, 98)])
    loss_fn = quadratic(symmetric(eigenvalues), jnp.zeros(100))
    spectrum = spectrum_of(loss_fn, jnp.zeros(100), num_iterations=30, num_probes=160)
    for degree in (1, 2):
        found = moments(spectrum, 100, degree)
        error = found.std() / np.sqrt(len(found))
        assert error < 0.2 * found.mean()
        assert abs(found.mean() - np.sum(eigenvalues**degree)) < 3 * error
    np.testing.assert_allclose(spectrum.nodes[:, -1], 40, rtol=1e-5)
    np.testing.assert_allclose(spectrum.nodes[:, 0], -1, atol=0.15)


def lanczos_in_numpy(hessian, vector, num_iterations):
    """Nodes and weights by the textbook, in float64."""
    basis, alphas, betas = [vector / np.linalg.norm(vector)], [], []
    for _ in range(num_iterations):
        image = hessian @ basis[-1]
        alphas.append(basis[-1] @ image)
        image -= np.array(basis).T @ (np.array(basis) @ image)
        image -= np.array(basis).T @ (np.array(basis) @ image)
        betas.append(np.linalg.norm(image))
        basis.append(image / betas[-1])
    matrix = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2


def test_spectrum_of_a_pytree_is_that_of_a_reference():
    params = network_params()
    spectrum = jax.jit(
        lambda p: hessian_spectrum(network_loss, p, num_iterations=6, num_probes=2, seed=5)
    )(params)
    key = jax.random.split(measure._make_key(5, "measure.spectrum"), 2)[1]
    start, _ = ravel_pytree(measure._random_signs(params, key))
    np.testing.assert_allclose(np.abs(start), len(start) ** -0.5, rtol=1e-6)
    hessian = np.asarray(dense_hessian(params), np.float64)
    nodes, weights = lanczos_in_numpy(hessian, np.asarray(start, np.float64), 6)
    np.testing.assert_allclose(spectrum.nodes[1], nodes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(spectrum.weights[1], weights, atol=1e-5)


def test_all_iterations_find_all_eigenvalues():
    params = network_params()
    spectrum = spectrum_of(network_loss, params, num_iterations=99, num_probes=3)
    expected = np.linalg.eigvalsh(np.asarray(dense_hessian(params), np.float64))
    np.testing.assert_allclose(spectrum.nodes, [expected] * 3, atol=2e-4 * expected[-1])


def test_density_is_the_weighted_sum_of_bells():
    spectrum = Spectrum(
        jnp.asarray([[0.0, 2.0], [1.0, 3.0]]), jnp.asarray([[0.9, 0.1], [0.5, 0.5]])
    )
    grid = jnp.linspace(-4, 7, 400)
    density = jax.jit(lambda s: spectral_density(s, grid, width=0.3))(spectrum)
    expected = sum(
        weight * np.exp(-((np.asarray(grid) - node) ** 2) / 0.18) / np.sqrt(2 * np.pi) / 0.3 / 2
        for node, weight in ((0, 0.9), (2, 0.1), (1, 0.5), (3, 0.5))
    )
    np.testing.assert_allclose(density, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, rtol=1e-4)
    for same in (tuple(spectrum), [np.asarray(x).tolist() for x in spectrum]):
        np.testing.assert_allclose(
            spectral_density(same, grid.tolist(), width=0.3), density, rtol=1e-4, atol=1e-7
        )


def test_density_of_several_networks_by_vmap():
    losses = [quadratic(symmetric((4.0, 2.0, s)), jnp.zeros(3)) for s in (0.0, 1.0)]
    spectra = [spectrum_of(loss_fn, jnp.zeros(3), num_probes=2) for loss_fn in losses]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *spectra)
    grid = jnp.linspace(-2, 6, 200)
    densities = jax.vmap(lambda s: spectral_density(s, grid, width=0.3))(stacked)
    np.testing.assert_allclose(np.trapezoid(densities, grid), 1, rtol=1e-4)
    with pytest.raises(ValueError, match=r"\(2, 2, 3\), \(2, 2, 3\)\..* vmap this function"):
        spectral_density(stacked, grid, width=0.3)


@pytest.mark.parametrize(
    ("spectrum", "error", "match"),
    [
        (
            Spectrum(jnp.zeros(2), jnp.ones(2)),
            ValueError,
            r"spectrum .* \(2,\), \(2,\)\..*nodes\[None",
        ),
        (
            Spectrum(jnp.zeros((1, 2)), jnp.ones((2, 2))),
            ValueError,
            r"spectrum .* \(1, 2\), \(2, 2\)",
        ),
        ((jnp.zeros((1, 2)),), ValueError, r"spectrum .* \(1, 2\)\."),
        ((jnp.zeros((1, 2), int),) * 2, TypeError, "spectrum must be real floating point"),
        (jnp.zeros((2, 1, 2)), TypeError, "spectrum must be what hessian_spectrum returns"),
    ],
)
def test_bad_spectra_of_the_density(spectrum, error, match):
    with pytest.raises(error, match=match):
        spectral_density(spectrum, jnp.zeros(3), width=0.1)


def kernels():
    shapes = {"conv": (3, 3, 2, 5), "dense": (4, 3), "bias": (3,), "scale": ()}
    return {name: jnp.asarray(RNG.normal(size=x), jnp.float32) for name, x in shapes.items()}


@pytest.mark.parametrize("axis", [-1, 0])
def test_a_direction_has_the_filters_lengths(axis):
    params = kernels()
    direction = filter_normalized_direction(params, filter_axis=axis)
    for name in ("conv", "dense"):
        found, expected = (
            np.linalg.norm(np.moveaxis(x[name], axis, 0).reshape(x[name].shape[axis], -1), axis=1)
            for x in (direction, params)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not direction["bias"].any()
    assert direction["scale"] == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_direction_has_filters_of_any_length(scale):
    params = kernels()
    scaled = filter_normalized_direction(jax.tree.map(lambda x: scale * x, params))
    for found, expected in zip(
        *map(jax.tree.leaves, (scaled, filter_normalized_direction(params))), strict=True
    ):
        np.testing.assert_allclose(found / scale, expected, rtol=1e-5)


def test_stacked_layers_by_vmap():
    """As the documentation has it: each layer normalised alone, and no bias moves."""
    layers = [kernels(), kernels()]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    directions = jax.vmap(lambda p, s: filter_normalized_direction(p, seed=s))(
        stacked, jnp.arange(2)
    )
    assert not directions["bias"].any()
    for i, layer in enumerate(layers):
        expected = filter_normalized_direction(layer, seed=i)
        np.testing.assert_allclose(directions["dense"][i], expected["dense"], rtol=1e-5)


def test_seeds_give_directions_of_their_own():
    params = {"a": jnp.ones((40, 40)), "b": jnp.ones((40, 40)).at[:, 3].set(0)}
    first, same, other = (filter_normalized_direction(params, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first["a"], same["a"])
    assert not first["b"][:, 3].any()
    for a, b in ((first["a"], other["a"]), (first["a"], first["b"])):
        assert abs(jnp.vdot(a, b)) < 0.1 * jnp.linalg.norm(a) * jnp.linalg.norm(b)


def test_curves_of_a_rescaled_network_are_the_same():
    x = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)

    def loss_fn(params):
        return jnp.square(jax.nn.relu(x @ params["in"]) @ params["out"]).mean()

    params = {name: jnp.asarray(RNG.normal(size=(3, 3)), jnp.float32) for name in ("in", "out")}
    rescaled = {"in": 4 * params["in"], "out": params["out"] / 4}
    curves = [
        loss_landscape(loss_fn, p, [filter_normalized_direction(p)], [jnp.linspace(-1, 1, 5)])
        for p in (params, rescaled)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_landscape_of_a_quadratic(batch_size):
    matrix, linear = symmetric((4.0, 2.0, 1.0)), jnp.asarray([1.0, -2.0, 0.5])
    w, *directions = jnp.asarray(RNG.normal(size=(3, 3)), jnp.float32)
    a, b = jnp.linspace(-1, 1, 5), jnp.asarray([0, 2, 3])

    @jax.jit
    def landscape(w):
        loss_fn = quadratic(matrix, linear)
        return loss_landscape(loss_fn, w, directions, [a, b], batch_size=batch_size)

    steps = np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1)
    points = np.asarray(w) + steps @ np.stack(directions)
    expected = 0.5 * np.einsum("abi,ij,abj->ab", points, matrix, points) + points @ linear
    np.testing.assert_allclose(landscape(w), expected, rtol=1e-4, atol=1e-5)


def test_plane_goes_through_all_three():
    three = [network_params()] * 3
    three = [jax.tree.map(lambda x, i=i: jnp.cos(i * x), p) for i, p in enumerate(three)]
    directions, points = jax.jit(plane_through)(*three)
    np.testing.assert_allclose(points[0], 0)
    flat = [ravel_pytree(tree)[0] for tree in (*three, *directions)]
    basis = np.stack(flat[3:])
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-5)
    for point, expected in zip(points, flat[:3], strict=True):
        np.testing.assert_allclose(flat[0] + point @ basis, expected, atol=1e-5)


def test_plane_of_a_line_is_refused():
    w = jnp.asarray([1.0, 2.0])
    for ends in ((2 * w, 4 * w), (w, 2 * w), (2 * w, w)):
        with pytest.raises(ValueError, match="second must not lie"):
            plane_through(w, *ends)
    assert not jax.jit(plane_through)(w, 2 * w, 4 * w)[0][1].any()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("place", range(3))
def test_a_plane_through_what_is_not_finite_is_nan(value, place):
    three = [jnp.zeros(3), jnp.asarray([1.0, 0, 0]), jnp.asarray([0, 1.0, 0])]
    three[place] = three[place].at[2].set(value)
    (_, v), points = plane_through(*three)
    assert jnp.isnan(v).any()
    assert jnp.isnan(points).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_plane_of_any_size(scale):
    three = [jnp.zeros(2), jnp.asarray([3.0, 0.0]), jnp.asarray([1.0, 2.0])]
    (u, v), points = plane_through(*(scale * w for w in three))
    np.testing.assert_allclose([u, v], np.eye(2), atol=1e-6)
    np.testing.assert_allclose(points / scale, three, atol=1e-6)


def test_spectrum_and_landscape_in_float64(x64):
    w = jnp.asarray([0.5, 1.5])

    def loss_fn(w):
        return jnp.sum(w**4)

    assert hessian_spectrum(loss_fn, w).nodes.dtype == jnp.float64
    np.testing.assert_allclose(hessian_spectrum(loss_fn, w).nodes, [[3, 27]], rtol=1e-12)
    losses = loss_landscape(loss_fn, w, [w], [np.asarray([0.0, 1.0])])
    np.testing.assert_allclose(losses, [loss_fn(w), 16 * loss_fn(w)], rtol=1e-12)


def test_what_is_not_finite_shows_in_the_spectrum():
    spectrum = spectrum_of(lambda w: jnp.sqrt(w).sum(), jnp.zeros(2))
    assert jnp.isnan(spectrum.nodes).all()
    assert jnp.isnan(spectral_density(spectrum, jnp.zeros(1), width=0.1)).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"num_iterations": 0}, ValueError, "num_iterations must be an integer >= 1, got 0"),
        ({"num_probes": jnp.array(2)}, TypeError, "num_probes"),
        ({"num_probes": 0}, ValueError, "num_probes"),
        ({"seed": -1}, ValueError, "seed"),
        ({"params": {}}, ValueError, "params"),
        ({"params": jnp.arange(3)}, TypeError, "params"),
        ({"loss_fn": lambda w: w}, ValueError, "loss_fn"),
    ],
)
def test_bad_arguments_of_the_spectrum(kwargs, error, match):
    with pytest.raises(error, match=match):
        hessian_spectrum(**({"loss_fn": jnp.sum, "params": jnp.ones(3)} | kwargs))


@pytest.mark.parametrize(
    ("grid", "width", "error", "match"),
    [
        (jnp.zeros(3), 0.0, ValueError, "width"),
        (jnp.zeros(3), "1", TypeError, "width"),
        (1.0, 0.1, ValueError, "grid must have one axis"),
        ([[0.0], [0.0, 1.0]], 0.1, TypeError, "grid must be real numbers"),
        (["0"], 0.1, TypeError, "grid must be real numbers"),
        (jnp.zeros(3, bool), 0.1, TypeError, "grid must be real numbers"),
    ],
)
def test_bad_arguments_of_the_density(grid, width, error, match):
    with pytest.raises(error, match=match):
        spectral_density(Spectrum(jnp.zeros((1, 2)), jnp.ones((1, 2)) / 2), grid, width=width)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"directions": jnp.ones((1, 3))}, TypeError, "directions must be a tuple or a list"),
        ({"coordinates": jnp.ones(3)}, TypeError, "coordinates must be a tuple or a list"),
        (
            {"coordinates": [jnp.ones(3)] * 2},
            ValueError,
            "same length, at least 1, got the lengths 1 and 2",
        ),
        ({"directions": [], "coordinates": []}, ValueError, "at least 1"),
        ({"directions": [jnp.ones(4)]}, ValueError, r"directions\[0\] must be shaped like params"),
        ({"directions": [jnp.arange(3)]}, TypeError, "directions"),
        ({"coordinates": [0.5]}, ValueError, "coordinates must have one axis"),
        ({"coordinates": [[1j]]}, TypeError, "coordinates must be real numbers"),
        ({"coordinates": [jnp.ones(2, jnp.complex64)]}, TypeError, "coordinates"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"params": jnp.arange(3)}, TypeError, "params"),
        ({"loss_fn": lambda w: w}, ValueError, "loss_fn"),
    ],
)
def test_bad_arguments_of_the_landscape(kwargs, error, match):
    good = {"directions": [jnp.ones(3)], "coordinates": [jnp.ones(2)]}
    with pytest.raises(error, match=match):
        loss_landscape(**({"loss_fn": jnp.sum, "params": jnp.ones(3)} | good | kwargs))


@pytest.mark.parametrize(
    ("params", "kwargs", "error", "match"),
    [
        (jnp.ones((2, 2)), {"seed": -1}, ValueError, "seed"),
        (jnp.ones((2, 2)), {"filter_axis": 2}, ValueError, "filter_axis must be an axis"),
        (jnp.ones((2, 2)), {"filter_axis": -3}, ValueError, "filter_axis must be an axis"),
        (jnp.ones((2, 2)), {"filter_axis": 0.5}, TypeError, "filter_axis"),
        (jnp.ones((2, 2), int), {}, TypeError, "params"),
    ],
)
def test_bad_arguments_of_a_direction(params, kwargs, error, match):
    with pytest.raises(error, match=match):
        filter_normalized_direction(params, **kwargs)


def test_bad_arguments_of_a_plane():
    with pytest.raises(ValueError, match="second must be shaped like origin"):
        plane_through(jnp.ones(2), jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="origin must hold at least one number"):
        plane_through({}, {}, {})
