"""Expectations of four smooth factors at any number of correlated inputs, by Hermite series between one or two inputs and two others: never more than a plane is integrated over.

F(x, y) of a pair of inputs has coefficients F_pq in the Hermite polynomials of its principal axes.  With M the correlations of the axes of two pairs,
    E F G = sum over N of F_N . S_N(M) G_N,     (S_N)_(pq)(rs) = E h_p(x) h_q(y) h_r(x') h_s(y'),  p + q = r + s = N,
where S_N = (1/N) sum over axes i, j of M_ij (raise i) S_(N-1) (raise j)^T, a product of contractions, so that rounding does not grow.  Four slots are split as (ab | cd), (aa | bc), (aa | bb),
(aaa | b) and (aaaa).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
from jaxtyping import Float64, Int64

from gnomon.core.reading import Array
from gnomon.numerics import chaos
from gnomon.numerics.nodes import POLE, derivatives
from gnomon.theory.activations import Function
from gnomon.theory.pairs import Table
from gnomon.theory.sources import Sources

FAMILIES = {"ssss": (0, 0, 0, 0), "sspp": (0, 0, 1, 1), "pppp": (1, 1, 1, 1), "qspp": (2, 0, 1, 1), "rppp": (3, 1, 1, 1), "qqpp": (2, 2, 1, 1)}
"""The derivative of each of four factors."""
NEEDED = {1: ("ssss", "sspp", "pppp"), 2: ("ssss", "sspp", "pppp", "qspp"), 3: tuple(FAMILIES)}

COARSER = 3 * chaos.ORDER // 4
"""Terms of a series that the coarser of two cuts keeps at most."""

Key = tuple[int, ...]


@functools.cache
def _keys(order: int) -> tuple[Key, ...]:
    """The products of derivatives at one input that occur in a family, pairs first."""
    found = {tuple(sorted(part)) for name in NEEDED[order] for size in (1, 2, 3, 4) for part in itertools.combinations(FAMILIES[name], size)}
    return tuple(sorted(found, key=lambda key: (len(key) != 2, len(key), key)))


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
    """Hermite coefficients along each input of all products of derivatives (`_keys`), and moments of one and of two inputs, by COARSER
    and by all terms: what any cut needs of a kernel.   Shapes: (n, keys, order), (2, moments)."""

    coefficients: Array
    moments: Array


def lines(activation: Function, kernel: Float64[Array, "n n"], order: int) -> Lines:
    """Those of a smooth activation.   Error: rounding.   Cost: n lines, n^2 sums of series."""
    size = np.sqrt(np.diag(kernel))
    f = derivatives(activation, size[:, None] * chaos.line()[0], order)
    one = chaos.coefficients(np.stack([np.prod([f[k] for k in key], axis=0) for key in _keys(order)], 1))
    powers = np.clip(kernel / np.outer(size, size), -1, 1)[:, :, None] ** np.arange(chaos.ORDER)
    left, right = one[:, None] * powers[:, :, None], one[None].transpose(0, 1, 3, 2)
    coarse = left[..., :COARSER] @ right[:, :, :COARSER]
    fine = coarse + left[..., COARSER:] @ right[:, :, COARSER:]
    return Lines(one, np.stack([np.concatenate([one[:, :, 0].reshape(-1), part.reshape(-1)]) for part in (coarse, fine)]))


@dataclasses.dataclass(frozen=True)
class Cut:
    """How many terms of a series are kept along the longer and the shorter axis of a pair, and the logarithm of what it and the integrals of its terms may leave."""

    terms: int
    rest: int
    need: float


def exact_sources(activation: Function, kernel: Float64[Array, "n n"], two: Table, *, order: int, digits: float, known: Lines | None = None) -> tuple[Sources, Sources]:
    """The sources of a smooth activation at two cuts of one series, the coarser first; `known` are its `lines` here.

    Shapes: kernel (n, n), positive semi-definite -> (n, n, n, n) each.   Error: about 10^-digits of the coarser and a tenth of that of the finer, but for a kernel so large that all terms are
    too few; their distance measures it.   Cost: n^2/2 planes, n^4/24 series.
    """
    n = len(kernel)
    rows = _moments(activation, kernel, known or lines(activation, kernel, order), order, digits)
    coarse, fine = (Sources.of({name: row[at].reshape(n, n, n, n) for name, at in _plan(n, order).items()}, two) for row in rows)
    return coarse, fine


def _moments(activation: Function, kernel: Float64[Array, "n n"], known: Lines, order: int, digits: float) -> Float64[Array, "2 moments"]:
    """All moments in a row, at two cuts: those of one input, of two, of three as (key, f, g), of four."""
    n, size, parts = len(kernel), np.sqrt(np.diag(kernel)), [known.moments]
    if n > 2:
        pairs = np.array(list(itertools.combinations(range(n), 2)))
        roots = np.stack([_root(kernel[np.ix_(pair, pair)]) for pair in pairs])
        cuts = _cuts(np.abs(roots).max((0, 1)), digits)
        planes = [_planes(activation, roots, order, cut) for cut in cuts]
        inverse = np.stack([np.linalg.pinv(root, rcond=1e-7) for root in roots])
        parts.append(_threes(known.coefficients, inverse, kernel, size, planes))
        if n > 3:
            parts.append(_fours(inverse, kernel, planes))
    return np.concatenate([part.reshape(2, -1) for part in parts], 1)


def _cuts(reach: Float64[Array, "2"], digits: float) -> tuple[Cut, Cut]:
    """Two cuts for axes along which arguments move by so much: a pole at POLE takes (need m/pi)^2 terms, and where m is small need/log(POLE/m); what is flat takes a few."""

    def terms(moved: float, need: float, most: int) -> int:
        few = 4 + need / math.log(POLE / moved) if 0 < moved < POLE / 2 else math.inf
        return int(min((need * moved / math.pi) ** 2 + 8 + 2 * need / math.log(10), few, most)) if moved > 0 else 1

    need, more = digits * math.log(10) + 1, (digits + 1) * math.log(10) + 1
    low = [terms(float(moved), need, COARSER) for moved in reach]
    # two terms more at least: one alone would add nothing to an odd function, and two cuts would agree on what both leave out
    high = [max(terms(float(moved), more, chaos.ORDER), few + 2) if moved > 0 else 1 for moved, few in zip(reach, low, strict=True)]
    return Cut(low[0], min(low), need), Cut(high[0], min(high), more)


def _root(block: Float64[Array, "2 2"]) -> Float64[Array, "2 2"]:
    """The principal axes of a pair, the longer first, as columns."""
    values, vectors = np.linalg.eigh(block)
    return (vectors * np.sqrt(np.maximum(values, 0.0)))[:, ::-1]


def _planes(activation: Function, roots: Float64[Array, "pairs 2 2"], order: int, cut: Cut) -> Float64[Array, "pairs f g p q"]:
    """Hermite coefficients of f(z_1) g(z_2), z = root (x, y), for all derivatives f and g."""
    axes = []
    for moved, terms in zip(np.abs(roots).max((0, 1)), (cut.terms, cut.rest), strict=True):
        step = min(math.pi * math.sqrt(2 / cut.need), 2 * math.pi * POLE / cut.need / max(moved, 1e-300), math.pi / math.sqrt(2 * terms + 1))
        count = math.ceil((math.sqrt(2 * cut.need) + 2.0) / step)
        u = np.arange(-count, count + 1) * step
        axes.append((u, chaos.hermite(u, max(terms, 2))[:terms] * (step / math.sqrt(2 * math.pi) * np.exp(-(u**2) / 4))))
    (x, left), (y, right) = axes
    z = roots[:, :, 0, None, None] * x[:, None] + roots[:, :, 1, None, None] * y
    f = np.stack(derivatives(activation, z, order))
    projected = (f[:, None, :, 0] * f[None, :, :, 1]) @ right.T
    return np.moveaxis(left @ projected, 2, 0)


def _threes(one: Array, inverse: Float64[Array, "pairs 2 2"], kernel: Array, size: Array, planes: list[Array]) -> Float64[Array, "2 triples keys f g"]:
    """E k(z_a) f(z_b) g(z_c) for products k of two derivatives, in the order of `_plan`, at two cuts."""
    n, (count, _, terms, rest), (few, less) = len(kernel), planes[1].shape[1:], planes[0].shape[3:]
    every = [(p, q) for p, q in itertools.product(range(terms), range(rest)) if p + q < terms]
    every.sort(key=lambda at: at[0] + at[1] >= few or at[1] >= less)  # those of the coarser cut first
    p, q = np.array(every).T
    inner = int(((p + q < few) & (q < less)).sum())
    lengths, doubles = _log_factorial(terms), _doubles(count - 1)
    factors = one[:, :doubles][:, :, p + q] * np.exp((lengths[p + q] - lengths[p] - lengths[q]) / 2)
    coarse, fine = (part.reshape(len(part), count**2, *part.shape[3:])[:, :, p[:most], q[:most]].transpose(0, 2, 1) for part, most in zip(planes, (inner, len(p)), strict=True))
    found = []
    for number, pair in enumerate(itertools.combinations(range(n), 2)):
        others = [a for a in range(n) if a not in pair]
        along = inverse[number] @ kernel[pair, :][:, others] / size[others]
        weights = (along[0, :, None] ** np.arange(terms))[:, p] * (along[1, :, None] ** np.arange(rest))[:, q]
        left = (factors[others] * weights[:, None]).reshape(-1, len(p))
        found.append(np.stack([left[:, :inner] @ coarse[number], left @ fine[number]]))
    return np.concatenate(found, 1).reshape(2, -1, doubles, count, count)


@functools.cache
def _log_factorial(count: int) -> Float64[Array, "count"]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])


def _doubles(order: int) -> int:
    """How many keys are pairs; they come first."""
    return sum(len(key) == 2 for key in _keys(order))


def _fours(inverse: Float64[Array, "pairs 2 2"], kernel: Array, planes: list[Array]) -> Float64[Array, "2 groups f g h k"]:
    """E f(z_a) g(z_b) h(z_c) k(z_d) for all a < b < c < d, at two cuts."""
    n, (count, _, terms, rest) = len(kernel), planes[1].shape[1:]
    where = {pair: number for number, pair in enumerate(itertools.combinations(range(n), 2))}
    groups = list(itertools.combinations(range(n), 4))
    left, right = np.array([where[g[:2]] for g in groups]), np.array([where[g[2:]] for g in groups])
    cross = np.stack([kernel[np.ix_(g[:2], g[2:])] for g in groups])
    m = np.ascontiguousarray((inverse[left] @ cross @ inverse[right].transpose(0, 2, 1)).transpose(1, 2, 0))
    lengths = _log_factorial(terms + 1)
    raised = np.ones((1, 1, len(groups)))
    found = np.zeros((2, len(groups), count**2, count**2))
    for level in range(terms):
        raised = _raised(raised, m, rest) if level else raised
        between = np.ascontiguousarray(raised.transpose(2, 0, 1))
        for total, part in zip(found, planes, strict=True):
            if level < part.shape[3]:
                at = np.arange(min(len(raised), part.shape[4]))
                diagonal = part.reshape(len(part), count**2, *part.shape[3:])[:, :, level - at, at] * np.exp((lengths[at] + lengths[level - at] - lengths[level]) / 2)
                total += diagonal[left] @ between[:, : len(at), : len(at)] @ diagonal[right].transpose(0, 2, 1)
    return found.reshape(2, len(groups), count, count, count, count)


def _raised(c: Float64[Array, "q q groups"], m: Float64[Array, "2 2 groups"], rest: int) -> Float64[Array, "wide wide groups"]:
    """The coefficients of y^q y'^s in (M_00 + M_01 y' + M_10 y + M_11 y y')^N from those of N - 1, below `rest`: S_N times the roots of the binomials of N and q, and of N and s."""
    old = len(c)
    width = min(old + 1, rest)
    made = np.zeros((width, width, c.shape[2]))
    np.multiply(m[0, 0], c, out=made[:old, :old])
    made[:old, 1:] += m[0, 1] * c[:, : width - 1]
    made[1:, :old] += m[1, 0] * c[: width - 1]
    made[1:, 1:] += m[1, 1] * c[: width - 1, : width - 1]
    return made


@functools.lru_cache(maxsize=16)
def _plan(n: int, order: int) -> dict[str, Int64[Array, "places"]]:
    """Where each element of each family stands among all moments in a row."""
    keys = _keys(order)
    index, count, size, doubles = {key: number for number, key in enumerate(keys)}, order + 1, len(keys), _doubles(order)
    triples = [(a, b, c) for b, c in itertools.combinations(range(n), 2) for a in range(n) if a not in (b, c)]
    threes: dict[tuple[int, ...], int] = {group: number for number, group in enumerate(triples)}
    fours: dict[tuple[int, ...], int] = {group: number for number, group in enumerate(itertools.combinations(range(n), 4))}
    starts = np.cumsum([0, n * size, n * n * size**2, len(threes) * doubles * count**2])

    @functools.cache
    def place(slots: tuple[tuple[int, int], ...]) -> int:
        groups: dict[int, list[int]] = {}
        for a, derivative in slots:
            groups.setdefault(a, []).append(derivative)
        found = sorted(((a, tuple(sorted(key))) for a, key in groups.items()), key=lambda pair: (-len(pair[1]), pair[0]))
        at = tuple(a for a, _ in found)
        if len(found) == 1:
            return int(at[0] * size + index[found[0][1]])
        if len(found) == 2:
            return int(starts[1] + ((at[0] * n + at[1]) * size + index[found[0][1]]) * size + index[found[1][1]])
        rest = [key[0] for _, key in found[1:]]
        if len(found) == 3:
            return int(starts[2] + ((threes[at] * doubles + index[found[0][1]]) * count + rest[0]) * count + rest[1])
        return int(starts[3] + fours[at] * count**4 + np.ravel_multi_index((found[0][1][0], *rest), (count,) * 4))

    return {name: np.array([place(tuple(sorted(zip(at, FAMILIES[name], strict=True)))) for at in itertools.product(range(n), repeat=4)]) for name in NEEDED[order]}


@functools.lru_cache(maxsize=32)
def patterns(n: int, name: str) -> dict[tuple[Key, ...], tuple[Int64[Array, "places"], Int64[Array, "places"]]]:
    """For each pattern of derivatives over distinct inputs where it stands among n^4 elements, and of which group of inputs it is."""
    number = {group: index for size in range(1, 5) for index, group in enumerate(itertools.combinations(range(n), size))}
    found: dict[tuple[Key, ...], tuple[list[int], list[int]]] = {}
    for position, inputs in enumerate(itertools.product(range(n), repeat=4)):
        group = tuple(sorted(set(inputs)))
        pattern = tuple(tuple(sorted(order for a, order in zip(inputs, FAMILIES[name], strict=True) if a == own)) for own in group)
        where, which = found.setdefault(pattern, ([], []))
        where.append(position)
        which.append(number[group])
    return {pattern: (np.array(where), np.array(which)) for pattern, (where, which) in found.items()}
