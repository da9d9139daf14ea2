"""All first-order tensors: closed forms, a second quadrature, the limit of smooth activations at a kink, and derivatives of real networks taken by autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.instruments import ensembles
from gnomon.models import perceptrons
from gnomon.numerics import nodes
from gnomon.numerics.signs import Signs
from gnomon.theory import effective, first_order
from gnomon.theory.exact_sources import FAMILIES, exact_sources
from gnomon.theory.kinked_sources import kinked_sources
from gnomon.theory.pairs import pair_moments, smoothness
from gnomon.theory.pieces import Piecewise
from gnomon.theory.piecewise_sources import piecewise_sources
from gnomon.theory.sources import sources
from gnomon.theory.tensors import numbers, tensors

RANDOM = np.random.default_rng(0).normal(size=(6, 7))
NAMES = first_order.names("ddntk")


@pytest.mark.parametrize("n", [1, 2, 5])
def test_linear_networks_have_closed_forms_on_any_number_of_inputs(n):
    """Theta = l K at C_W = lambda_W = 1 without biases; every tensor is a sum over layers of powers of them, times products of K."""
    k, depth = RANDOM[:n] @ RANDOM[:n].T / 7, 4
    found = tensors(lambda z: z, kernel=k, depth=depth, weight_variance=1.0, bias_rates=0.0, tolerance=1e-10)
    acbd, adbc, abcd = (np.einsum(f"{pair[:2]},{pair[2:]}->abcd", k, k) for pair in ("acbd", "adbc", "abcd"))
    for layer in range(1, depth + 1):
        m = layer - 1
        squares, cubes = m * layer * (2 * m + 1) / 6, m * layer * (layer + 1) / 6
        fourth = sum(j**2 + (j - 1) * j * (2 * j - 1) / 6 for j in range(1, layer))
        truth = {
            "G1": 0 * k, "H1": 0 * k, "V": m * (acbd + adbc), "D": m * layer / 2 * (acbd + adbc), "A": squares * (acbd + adbc), "B": squares * acbd, "F": m * layer / 2 * np.einsum("ab,cd->acbd", k, k),
            "P": 0 * abcd, "Q": cubes * np.einsum("bd,ac->abcd", k, k), "R": 0 * abcd, "S": fourth * np.einsum("ac,bd->abcd", k, k), "U": 0 * abcd,
        }  # fmt: skip
        t = sum(j + j * (j - 1) / 2 + (j - 1) * j * (j + 1) / 3 for j in range(1, layer))
        truth["T"] = t * np.einsum("cd,ab->acdb", k, k)
        np.testing.assert_allclose(found.ntk[m], layer * k, atol=1e-11)
        for name, value in truth.items():
            np.testing.assert_allclose(found.value(name)[m], value, atol=1e-9, err_msg=name)


def hermite_grid(kernel, nodes):
    """A product of Gauss-Hermite rules along the principal axes."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    values, vectors = np.linalg.eigh(kernel)
    n = len(kernel)
    u = np.stack([part.reshape(-1) for part in np.meshgrid(*[x] * n, indexing="ij")], 1)
    weights = np.prod([part.reshape(-1) for part in np.meshgrid(*[w / w.sum()] * n, indexing="ij")], 0)
    return u @ (vectors * np.sqrt(values)).T, weights


def density(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def step(z):
    return torch.special.ndtr(torch.from_numpy(z)).numpy()


SIN = (np.sin, np.cos, lambda z: -np.sin(z), lambda z: -np.cos(z))
TANH = (np.tanh, lambda z: 1 - np.tanh(z) ** 2, lambda z: -2 * np.tanh(z) * (1 - np.tanh(z) ** 2), lambda z: (1 - np.tanh(z) ** 2) * (6 * np.tanh(z) ** 2 - 2))
GELU = (lambda z: z * step(z), lambda z: step(z) + z * density(z), lambda z: density(z) * (2 - z**2), lambda z: density(z) * (z**3 - 4 * z))


@pytest.mark.parametrize(("function", "derivatives"), [(torch.sin, SIN), (torch.tanh, TANH), (F.gelu, GELU)])
def test_expectations_of_four_factors_by_another_quadrature(function, derivatives):
    """Derivatives written out; a grid in four dimensions."""
    k = 0.05 * RANDOM[:4] @ RANDOM[:4].T / 7 + 0.05
    two, _ = pair_moments(function, k, 3)
    _, found = exact_sources(function, k, two, order=3, digits=9)
    z, w = hermite_grid(k, 17)
    f = [derivative(z) for derivative in derivatives]
    means = {"ssss": ((0, 0), (0, 0)), "sspp": ((0, 0), (1, 1)), "pppp": ((1, 1), (1, 1))}
    for name, (i, j, m, o) in FAMILIES.items():
        truth = np.einsum("na,nb,nc,nd->abcd", f[i] * w[:, None], f[j], f[m], f[o], optimize=True)
        if name in means:
            truth -= np.multiply.outer(two[means[name][0]], two[means[name][1]])
        np.testing.assert_allclose(getattr(found, name), truth, atol=2e-6 * np.abs(truth).max(), err_msg=name)


@pytest.mark.parametrize("function", [torch.tanh, F.gelu])
def test_more_inputs_and_another_order_change_nothing(function):
    x = RANDOM[:5]
    settings = {"depth": 3, "weight_variance": 1.5, "bias_variance": 0.1, "weight_rates": 0.7, "bias_rates": [0.3, 0.2, 0.1]}
    three, five = tensors(function, inputs=x[:3], **settings), tensors(function, inputs=x[[4, 2, 1, 3, 0]], tolerance=1e-8, **settings)
    back = [4, 2, 1]
    for name in NAMES:
        value = five.value(name)[np.ix_(range(3), *[back] * (five.value(name).ndim - 1))]
        np.testing.assert_allclose(value, three.value(name), atol=2e-8 * np.abs(three.value(name)).max(), err_msg=name)


def test_one_input_agrees_with_the_recursion_of_one():
    found = tensors(F.silu, kernel=np.array([[1.3]]), depth=5, weight_variance=1.6, bias_variance=0.2, through="kernel")
    alone = effective.expansion(F.silu, depth=5, weight_variance=1.6, bias_variance=0.2, kernel=1.3)
    np.testing.assert_allclose(found.G1[:, 0, 0], alone.correction, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.V[:, 0, 0, 0, 0], alone.vertex, rtol=1e-9)


def by_hand(derivatives, k, c, b, rate, bias_rate, depth):
    """All thirteen on one input, where every bracket is a derivative of one product: a Gauss-Hermite rule of 200 nodes, nothing of the series."""
    x, w = np.polynomial.hermite_e.hermegauss(200)
    w, t, theta = w / w.sum(), dict.fromkeys(NAMES, 0.0), bias_rate + rate * (k - b) / c
    for _ in range(depth - 1):
        s, p, q, r = (f(math.sqrt(k) * x) for f in derivatives)
        omega, omega2 = rate * s**2 + c * theta * p**2, rate * (p**2 + s * q) + c * theta * (q**2 + p * r)
        u, du, v = c * theta * q * p + rate * p * s, c * theta * (r * p + q**2) + rate * (q * s + p**2), c * theta * r * p + rate * q * s
        ss, sss, ps, pp = w @ s**2, w @ (p**2 + s * q), w @ (q * s + p**2), w @ p**2
        fourth, bend = (w @ (s**2 * (x**4 - 6 * x**2 + 3))) / k**2, (w @ (omega * (x**4 - 6 * x**2 + 3))) / k**2
        t = {
            "G1": c * (sss * t["G1"] + fourth * t["V"] / 8), "H1": (w @ omega2) * t["G1"] + bend * t["V"] / 8 + c * (w @ (q**2 + p * r)) * (t["D"] + 2 * t["F"]) + c * pp * t["H1"],
            "V": c**2 * (w @ s**4 - ss**2 + sss**2 * t["V"]), "D": c * (w @ (s**2 * omega) - ss * (w @ omega) + sss * (w @ omega2) * t["V"] + sss * t["D"] * c * pp),
            "A": w @ omega**2 - (w @ omega) ** 2 + (w @ omega2) ** 2 * t["V"] + 2 * c * pp * t["D"] * (w @ omega2) + (c * pp) ** 2 * t["A"],
            "B": c**2 * ((w @ p**4) * theta**2 + pp**2 * t["B"]), "F": c**2 * ((w @ (s * p) ** 2) * theta + ps**2 * t["F"]),
            "P": c**2 * ((w @ (q * s * p**2)) * theta**2 + (w @ (q * s)) * pp * t["B"] + pp * ps * t["P"]),
            "Q": c * ((w @ (u * p * s)) * theta + (w @ du) * ps * t["F"] + c * pp * ps * t["Q"]),
            "R": c * ((w @ (v * p**2)) * theta**2 + (w @ v) * pp * t["B"] + pp * (w @ du) * t["P"] + c * pp**2 * t["R"]),
            "S": c**2 * theta * ((w @ (q * p) ** 2) * theta**2 + (w @ q**2) * pp * t["B"]) + c * rate * ((w @ p**4) * theta**2 + pp**2 * t["B"]) + c**2 * pp**2 * t["S"],
            "T": (w @ u**2) * theta + (w @ du) ** 2 * t["F"] + 2 * c * pp * (w @ du) * t["Q"] + c**2 * pp**2 * t["T"],
            "U": c**2 * ((w @ (q * p) ** 2) * theta**3 + pp**2 * t["U"]),
        }  # fmt: skip
        k, theta = b + c * ss, bias_rate + rate * ss + c * theta * pp
    return t


@pytest.mark.parametrize(("function", "derivatives", "rates"), [(torch.tanh, TANH, (0.7, 0.3)), (F.gelu, GELU, (1.0, 1.0))])
def test_all_thirteen_on_one_input_by_hand(function, derivatives, rates):
    """C_W and C_b are those of ntkunlimited's own example."""
    found = tensors(function, kernel=1.3, depth=4, weight_variance=1.98305826, bias_variance=0.17292239, weight_rates=rates[0], bias_rates=rates[1])
    for name, value in by_hand(derivatives, 1.3, 1.98305826, 0.17292239, *rates, 4).items():
        assert float(found.value(name)[-1].reshape(-1)[0]) == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(("function", "symmetric"), [(torch.tanh, True), (F.gelu, True)])
def test_the_symmetries_of_the_tensors(function, symmetric):
    found = tensors(function, inputs=RANDOM[:3], depth=3, weight_variance=1.4, bias_variance=0.1)
    swaps = {
        "V": ("bacd", "cdab"), "A": ("bacd", "cdab"), "D": ("bacd", "abdc"), "B": ("badc", "cdab"), "F": ("cdab",), "P": ("acbd",), "R": ("abdc",), "S": ("badc",), "U": (),
    }  # fmt: skip
    for name, orders in swaps.items():
        for order in orders:
            np.testing.assert_allclose(np.einsum(f"labcd->l{order}", found.value(name)), found.value(name), atol=1e-8 * np.abs(found.value(name)).max(), err_msg=f"{name} {order}")


def test_relu_is_the_limit_of_smooth_activations():
    """The kink's delta is counted: every tensor, of one and of two inputs, is what GELU(b z)/b goes to, by Richardson's extrapolation."""
    x = RANDOM[:2, :3] * np.array([[1.0], [0.8]])
    settings = {"inputs": x, "depth": 3, "weight_variance": 2.0, "bias_variance": 0.1, "bias_rates": 0.6, "through": "dntk"}
    found = tensors(torch.relu, **settings)
    rows = [tensors(lambda z, b=b: F.gelu(b * z) / b, tolerance=1e-6, **settings) for b in (8.0, 16.0, 32.0)]
    for name in first_order.names("dntk"):
        a, b, c = (row.value(name)[-1] for row in rows)
        once, twice = 2 * b - a, 2 * c - b
        limit = (4 * twice - once) / 3
        size = np.abs(limit).max()
        assert np.abs(limit - found.value(name)[-1]).max() < 0.02 * size + np.abs(limit - twice).max(), name
        assert np.abs(c - found.value(name)[-1]).max() < np.abs(a - found.value(name)[-1]).max() / 3, name


def test_the_kink_of_relu_is_in_finite_differences_of_real_networks():
    """P + Q + Q of two inputs by second differences of the output along two gradients; autograd's second derivatives leave out what the kink adds, and fail the same comparison."""
    x, width, step = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 1.1, 0.7]], dtype=torch.float64), 40, 0.05
    settings = {"depth": 3, "weight_variance": 2.0, "bias_variance": 0.1, "weight_rates": 0.8, "bias_rates": 0.6}
    found = tensors(torch.relu, inputs=x.numpy(), through="dntk", **settings)
    value = (found.P + found.Q + found.Q.transpose(0, 1, 3, 2, 4))[-1]
    finite, smooth = [], []
    for networks in perceptrons.draw(torch.relu, features=3, width=width, outputs=1, members=8_000, rng=chance.generator(3), **settings):
        leaves = networks._leaves()
        z = networks._with(leaves).outputs(x)[..., 0]
        slopes = [torch.autograd.grad(z[:, a].sum(), leaves, create_graph=True) for a in range(2)]
        ups = [networks._scaled([part.detach() for part in slope]) for slope in slopes]

        def moved(one, two, networks=networks, leaves=leaves, ups=ups):
            return networks._with([leaf.detach() + step * (one * u + two * v) for leaf, u, v in zip(leaves, *ups, strict=True)]).outputs(x)[..., 0].detach()

        second = torch.stack(
            [(moved(2, 0) + moved(-2, 0) - 2 * z.detach()) / 4, (moved(1, 1) - moved(1, -1) - moved(-1, 1) + moved(-1, -1)) / 4, (moved(0, 2) + moved(0, -2) - 2 * z.detach()) / 4],
            -1,
        )
        finite.append(width * torch.einsum("mae,md->maed", second / step**2, z.detach()))
        curved = [
            torch.autograd.grad(sum((g * u).sum() for g, u in zip(slopes[a], ups[b], strict=True)), leaves, retain_graph=True, materialize_grads=True)
            for a in range(2)
            for b in range(2)
        ]
        taken = torch.stack([sum((p * q).flatten(1).sum(1) for p, q in zip(part, ups[c], strict=True)) for part in curved for c in range(2)], -1).reshape(-1, 2, 2, 2)
        smooth.append(width * torch.einsum("mae,md->maed", torch.stack([taken[..., 0, 0], taken[..., 0, 1], taken[..., 1, 1]], -1), z.detach()))
    predicted = np.stack([value[:, 0, 0], value[:, 0, 1], value[:, 1, 1]], 1)
    allowed = 2.5 * 3 / width * np.abs(predicted).max()
    for samples, agrees in ((torch.cat(finite), True), (torch.cat(smooth), False)):
        error = samples.std(0).numpy() / math.sqrt(len(samples))
        assert (np.abs(samples.mean(0).numpy() - predicted) < allowed + 3 * error).all() == agrees


def test_relu_of_one_input_in_closed_form():
    """At C_W = 2 and without bias p is 0 or 1, so that all moments are halves: Theta = l K/2, A of l layers as a sum, P = 0."""
    depth, k = 6, 1.7
    found = tensors(torch.relu, kernel=np.array([[k]]), depth=depth, weight_variance=2.0, bias_rates=0.0, through="dntk")
    v = d = f = a = b = q = 0.0
    for m in range(1, depth):
        theta = m * k / 2
        # <s^4> = 3/2 K^2, <s^2> = K/2, <s^2 p^2> = K/2, <p^4> = 1/2; [Omega] = 1/2, [ss] = 1/2
        a = 1.5 * k**2 + 2 * theta * k + 2 * theta**2 - (k / 2 + theta) ** 2 + v / 4 + d + a
        d = 2 * (1.5 * k**2 + theta * k - k / 2 * (k / 2 + theta) + v / 4 + d / 2)
        v = 4 * (1.5 * k**2 - k**2 / 4 + v / 4)
        q = 2 * (k / 2 * theta + f / 4 + 2 * q / 4)
        f, b = 4 * (k / 2 * theta + f / 4), 4 * (theta**2 / 2 + b / 4)
        for name, value in {"A": a, "B": b, "D": d, "F": f, "V": v, "Q": q, "P": 0.0, "H1": 0.0, "G1": 0.0}.items():
            assert float(found.value(name)[m].reshape(-1)[0]) == pytest.approx(value, rel=1e-11, abs=1e-11), name


def test_the_published_curve_of_another_program():
    """Guillen, Misof & Gerken 2026, Figure 2: the mean kernel of four GELU layers over widths 6 to 220, read off the drawing's coordinates, by cubature of recursions in inverse kernels."""
    inputs = np.array(
        [[0.6540248765053858, -1.3592788739383235, -0.3791179316445409, 0.34191025226280697], [-0.6786403121150224, -0.12161213502515096, 0.21716372787141658, -1.4709063616118982]]
    )
    found = tensors(F.gelu, inputs=inputs, depth=4, weight_variance=1.98305826, bias_rates=0.0, through="ntk")
    np.testing.assert_allclose(found.ntk[-1, 0], [1.749264, 0.176856], rtol=1e-5)
    np.testing.assert_allclose(found.H1[-1, 0], [1.41440, -0.32457], rtol=1e-3)


def clamped(z):
    return (1.3 * z).clamp(-0.4, 1.7)


@pytest.mark.parametrize(
    ("function", "c_w", "c_b", "depth", "members"),
    [(torch.tanh, 1.3, 0.1, 4, 1_500), (F.gelu, 1.983, 0.173, 4, 1_500), (torch.relu, 2.0, 0.1, 4, 1_500), (clamped, 1.6, 0.1, 3, 3_000)],
)
def test_kernels_of_all_pairs_of_units_have_the_covariances(function, c_w, c_b, depth, members):
    """A, B, D and F from every pair of hidden units, two inputs: within 2.5 L/n and three standard errors, which are small; kinks are nothing to first derivatives."""
    width, x = 40, torch.tensor([[1.0, 0.5, -0.3], [-0.2, 1.1, 0.7]], dtype=torch.float64)
    settings = {"depth": depth, "weight_variance": c_w, "bias_variance": c_b, "weight_rates": 0.8, "bias_rates": 0.6}
    drawn = perceptrons.draw(function, features=3, width=width, members=members, rng=chance.generator(5), **settings)
    z, theta = (torch.cat(part) for part in zip(*(networks.hidden_ntk(x) for networks in drawn), strict=True))
    found = tensors(function, inputs=x.numpy(), through="ntk", **settings)
    for name, measured in ensembles.ntk_covariances(z, theta).items():
        value = found.value(name)[-1]
        value = value.transpose(0, 2, 1, 3) if name in "BF" else value
        largest, error = np.abs(value).max(), np.asarray(measured.error)
        assert (np.abs(np.asarray(measured.value) - value) < 2.5 * depth / width * largest + 3 * error).all(), name
        assert error.max() < 0.15 * largest, f"an ensemble that says something of {name}"


@pytest.mark.parametrize(("function", "power", "depth"), [(torch.relu, 1, 64), (torch.tanh, 1, 64), (F.gelu, 3, 256)])
def test_the_fluctuation_of_the_kernel_grows_with_the_power_of_its_class(function, power, depth):
    """log2 of the growth of A/Theta^2 as the depth doubles twice, carried on to the limit."""
    point = effective.critical_point(function)
    settings = {"weight_variance": point.weight_variance, "bias_variance": point.bias_variance, "kernel": point.kernel or 1.0}
    found = tensors(function, depth=depth, through="ntk", tolerance=1e-6, **settings)
    ratio = found.A[:, 0, 0, 0, 0] / found.ntk[:, 0, 0] ** 2
    first, second = math.log2(ratio[depth // 2 - 1] / ratio[depth // 4 - 1]), math.log2(ratio[-1] / ratio[depth // 2 - 1])
    assert 2 * second - first == pytest.approx(power, abs=0.1)


def test_more_points_more_inputs_with_kinks():
    """Three inputs of ELU, whose bend jumps, nearly in a plane, are sampled; the stated intervals hold the exact tensors of each two of them."""
    x, settings = np.stack([*RANDOM[:2, :4], RANDOM[:2, :4].sum(0) / 2 + 1e-3 * RANDOM[2, :4]]), {"depth": 3, "weight_variance": 1.4, "bias_variance": 0.1, "through": "dntk"}
    found = tensors(F.elu, inputs=x, points=2048, **settings)
    assert found.scrambles == 8
    inside = total = 0
    for a, b in itertools.combinations(range(3), 2):
        exact = tensors(F.elu, inputs=x[[a, b]], **settings)
        assert exact.scrambles == 0
        for name in first_order.names("dntk"):
            at = np.ix_([2], *[[a, b]] * (exact.value(name).ndim - 1))
            good = np.abs(found.value(name)[at][0] - exact.value(name)[2]) <= found.half_width(name)[at][0] + 1e-12
            inside, total = inside + int(good.sum()), total + good.size
    assert inside >= 0.9 * total


SLOPED = [(torch.relu, (1.0, 0.0)), (lambda z: F.leaky_relu(z, 0.2), (1.0, 0.2)), (torch.abs, (1.0, -1.0))]


@pytest.mark.parametrize(("function", "slopes"), SLOPED)
def test_scale_invariant_activations_on_four_inputs_by_other_methods(function, slopes):
    """By product rules, to what they say; by scrambled points, of which the 95 % intervals hold at least nine in ten."""
    four = RANDOM[:4] @ RANDOM[:4].T / 7
    table, root = pair_moments(function, four, 1)[0], np.linalg.cholesky(four)
    closed, count = kinked_sources(slopes, four, table, order=2, nodes=48), 2**14
    assert piecewise_sources(Piecewise.of(function), four, table, order=2, digits=11).distance(closed) < 1e-10
    points = [nodes.sobol(4, count, rng=chance.generator(index)) @ root.T for index in range(8)]
    sampled = [sources(function, z, np.full(count, 1 / count), table, order=2, kernel=four) for z in points]
    for name in ("ssss", "sspp", "pppp", "qspp"):
        each = np.stack([getattr(found, name) for found in sampled])
        half = 2.365 * each.std(0, ddof=1) / math.sqrt(8)
        assert half.max() < 0.03 * np.abs(getattr(closed, name)).max(), name
        assert (np.abs(each.mean(0) - getattr(closed, name)) <= half + 1e-12).mean() >= 0.9, name


def test_signs_of_four_variables():
    """Four in a plane by arcs of a circle; and nearly alike by ever more nodes."""
    angle = np.array([0.3, 1.1, 2.9, 4.0])
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    x, w = np.polynomial.legendre.leggauss(40)
    ends = np.sort(np.concatenate([(angle + math.pi / 2) % (2 * math.pi), (angle - math.pi / 2) % (2 * math.pi)]))
    low, high = ends, np.append(ends[1:], ends[0] + 2 * math.pi)
    at, weight = ((low + high)[:, None] / 2 + (high - low)[:, None] / 2 * x).reshape(-1), ((high - low)[:, None] / 2 * w).reshape(-1) / (2 * math.pi)
    z = way @ np.stack([np.cos(at), np.sin(at)])
    flat = way @ way.T
    assert Signs(flat[None], 48).moment((0,) * 4, (1,) * 4)[0] == pytest.approx(weight @ np.sign(z).prod(0), abs=1e-8)
    # E r^4 = 8 of a radius whose square has mean 2
    truth = 8 * (weight @ np.abs(z).prod(0))
    table = pair_moments(torch.abs, flat, 1)[0]
    assert kinked_sources((1.0, -1.0), flat, table, order=1, nodes=48).ssss[0, 1, 2, 3] + table[0, 0][0, 1] * table[0, 0][2, 3] == pytest.approx(truth, abs=1e-6)
    near = 0.999 * np.ones((4, 4)) + 0.001 * RANDOM[:4] @ RANDOM[:4].T / 7
    once, often = (Signs(near[None], count).moment((0,) * 4, (1,) * 4)[0] for count in (48, 400))
    assert once == pytest.approx(often, abs=1e-9)


def test_the_stated_error_holds_a_finer_cut():
    for function in (torch.tanh, F.gelu, torch.erf):
        settings = {"inputs": RANDOM[:3], "depth": 4, "weight_variance": 1.7, "bias_variance": 0.1}
        coarse, fine = (tensors(function, tolerance=tolerance, **settings) for tolerance in (1e-4, 1e-11))
        for name in NAMES:
            assert coarse.relative_error(name) <= 1e-4
            assert (np.abs(coarse.value(name) - fine.value(name)) <= coarse.errors[name] + 1e-9 * np.abs(fine.value(name)).max()).all(), name


@pytest.mark.parametrize(
    ("function", "order"), [(torch.relu, 1), (F.elu, 2), (torch.tanh, 3), (F.hardtanh, 1), (torch.sign, 0), (F.softplus, 3), (lambda z: F.relu(z - 0.37), 1), (F.relu6, 1)]
)
def test_kinks_are_found(function, order):
    assert smoothness(function) == order


def test_readings_of_a_width():
    found = tensors(torch.tanh, inputs=RANDOM[:2], depth=3, weight_variance=1.3, bias_variance=0.1)
    narrow, wide = (found.reading("A", width=width) for width in (50, 100))
    np.testing.assert_allclose(narrow.value, 2 * wide.value)
    assert narrow.error_kind == "truncation"
    np.testing.assert_allclose(np.asarray(narrow.error), 4 * np.asarray(wide.error), rtol=1e-6)
    np.testing.assert_allclose(found.reading("H1", width=50).value, found.ntk + found.H1 / 50)
    with pytest.raises(InvalidInput, match="width must be at least 1"):
        found.reading("A", width=0)
    with pytest.raises(InvalidInput, match="no tensor 'R'"):
        tensors(torch.tanh, inputs=RANDOM[:1], depth=2, weight_variance=1.0, through="dntk").reading("R", width=9)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"inputs": np.zeros((1, 3))}, InvalidInput, "kernel 0"), ({"inputs": np.ones((2, 3))}, InvalidInput, "the same up to a factor"), ({}, InvalidInput, "Give either"),
        ({"inputs": np.ones((1, 3)), "depth": 0}, InvalidInput, "depth must be at least 1"),
        ({"inputs": np.ones((1, 3)), "weight_rates": [1.0, 2.0]}, InvalidInput, "one for each of 3 layers"), ({"inputs": np.ones((1, 3)), "activation": torch.relu}, OutOfScope, "slope jumps"),
        ({"inputs": np.ones((1, 3)), "activation": F.elu}, OutOfScope, "bend jumps"), ({"inputs": np.ones((1, 3)), "activation": torch.sign, "through": "ntk"}, OutOfScope, "activation jumps"),
        ({"inputs": np.full((1, 3), 3.0), "activation": lambda z: torch.where(z < 40, z, torch.nan)}, (InvalidInput, OutOfScope), "not finite|not a number"),
        ({"inputs": np.ones((1, 3)), "activation": torch.exp}, OutOfScope, "faster than a polynomial"),
        ({"inputs": np.ones((1, 3)), "tolerance": math.nan}, InvalidInput, "tolerance is a part"), ({"inputs": np.array([[1.0, math.nan]])}, InvalidInput, "inputs must be finite: 1 of 2"),
        ({"inputs": np.ones(3)}, InvalidInput, r"shape \(inputs, features\)"),
        ({"inputs": np.ones((1, 3)), "activation": lambda z: torch.from_numpy(np.tanh(z.numpy()))}, InvalidInput, "autograd can follow"), ({"inputs": np.ones((1, 3)), "activation": lambda z: torch.sin(50 * z)}, OutOfScope, "turns so fast"),
        ({"kernel": 1e5}, OutOfScope, "large kernel"), ({"inputs": np.ones((1, 3)), "tolerance": 1e-20}, OutOfScope, "does not fall below"),
        ({"inputs": np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.001]]), "activation": F.hardtanh, "bias_variance": 1e-4, "through": "ntk", "tolerance": 1e-6}, OutOfScope, "1e-06 was asked for: take more `points`"),
        ({"kernel": np.array([[1.0, -0.5], [-0.5, 1.0]]), "bias_variance": 0.9}, InvalidInput, "inputs' own part"),
        ({"inputs": np.array([[1.0, 0.0], [1.0, 0.1]]), "activation": torch.relu, "through": "dntk", "depth": 60, "weight_variance": 0.5, "bias_variance": 0.5}, OutOfScope, "multiples of each other"),
    ],
)  # fmt: skip
def test_what_is_refused(settings, error, says):
    with pytest.raises(error, match=says):
        tensors(settings.pop("activation", torch.tanh), **{"depth": 3, "weight_variance": 1.0} | settings)


@pytest.mark.parametrize("said", [[["a"]], [[1.0, 2.0], [1.0]], np.ones(2) * 1j])
def test_what_is_no_numbers(said):
    with pytest.raises(InvalidInput, match="array of real numbers"):
        numbers("The inputs", said)
