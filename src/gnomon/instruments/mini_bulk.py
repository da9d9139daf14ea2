"""The outliers of a classifier's curvature and the mini-bulk below them, counted against the means of classes and of pairs of classes."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.numerics.class_means import cross_class_means
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import GaussNewton

MOST_CLASSES = 10
"""Most classes: their square is the number of eigenvectors."""
TOLERANCE = 1e-6
"""Residual of an eigenvalue: the smallest of the mini-bulk are thousands of times smaller than the largest."""
KINDS = ("above the class means", "above the cross-class means")


def mini_bulk(subject: Subject, *, rng: Generator, products: int = 400) -> Reading:
    """How many eigenvalues of the Gauss-Newton matrix lie above what is left of it outside the class means, and outside the means of all pairs of classes.

    #{i : lambda_i(G) > lambda_max((1 - QQ') G (1 - QQ'))},  Q a basis of the class means d_c less their mean (C - 1), and of all d_{c,c'}, c' other than c (C^2 - C).

    By Cauchy's interlacing neither exceeds the rank of Q, and each reaches it where the means stand above the spread of the examples about them.  Their difference is the
    mini-bulk.  `details` has the edges and the eigenvalues.

    Shapes: value (2,).   Units: eigenvalues.   Error: bound, half the number of eigenvalues that residual bounds leave undecided.
    Assumes: eval mode; cross-entropy with one label an example; the counts are those on the examples seen.   Cost: up to 3 `products` products, `classes` gradients, C^2 vectors.
    Raises: OutOfScope for more than 10 classes, or a class without examples.
    Source: Papyan 2020, section 4.
    """
    if subject.classes is None or subject.classes > MOST_CLASSES:
        raise OutOfScope(f"the mini-bulk is counted for 2 to {MOST_CLASSES} classes; here are {subject.classes}")
    classes, like, product = subject.classes, subject.state[subject.trainable[0]], GaussNewton(subject)
    pairs = cross_class_means(subject)
    weighed = pairs.reshape(subject.dimension, classes, classes - 1).sum(2)
    found = lanczos_eigenvalues(
        product, subject.dimension, k=min(pairs.shape[1] + 1, subject.dimension), rng=chance.child(rng, "whole"), like=like, max_products=products, tolerance=TOLERANCE
    )
    low, high = found.values - found.bounds, found.values + found.bounds
    counts, edges = [], []
    for name, means in zip(KINDS, (weighed - weighed.mean(1, keepdim=True), pairs), strict=True):
        left, size, _ = torch.linalg.svd(means, full_matrices=False)
        basis = left[:, size > 1e-6 * size[0]].to(like)

        def outside(v: Tensor, basis: Tensor = basis) -> Tensor:
            inner = product(v - basis @ (basis.T @ v))
            return inner - basis @ (basis.T @ inner)

        rest = lanczos_eigenvalues(outside, subject.dimension, rng=chance.child(rng, name), like=like, max_products=products, tolerance=TOLERANCE)
        top, slack = float(rest.values[0]), float(rest.bounds[0])
        counts.append((int((low > top + slack).sum()), min(int((high > top - slack).sum()), basis.shape[1])))
        edges.append(top)
    return Reading(
        "mini_bulk", [(a + b) / 2 for a, b in counts], "eigenvalues", error=[(b - a) / 2 for a, b in counts], error_kind="bound", axes=(Axis("edge", KINDS),),
        source=Source("papyan2020", "section 4"), details={"edges": edges, "eigenvalues": found.values.tolist(), "classes": classes},
    )  # fmt: skip
