"""Predictions about curvature: where an optimizer becomes unstable, how many outliers the Hessian has."""

from __future__ import annotations

from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.training import OPTIMIZERS, Training

COHEN_2021 = Source("cohen2021")
COHEN_2022 = Source("cohen2022")
PAPYAN_2020 = Source("papyan2020")
SCHRAUDOLPH_2002 = Source("schraudolph2002")


def stability_limit(training: Training) -> Reading:
    """Largest curvature at which the optimizer in use is stable on a quadratic loss.

    Along an eigenvector of curvature a the iteration x' = (1 + b) x - b x_prev - lr a x (heavy ball), x' = (1 + b)(1 - lr a) x - b (1 - lr a) x_prev
    (Nesterov) keeps its roots inside the unit circle iff a is below

    gradient descent 2 / lr;   heavy ball (2 + 2b) / lr;   Nesterov (2 + 2b) / (lr (1 + 2b));   Adam (2 + 2 b1) / ((1 - b1) lr), where a is then the
    curvature preconditioned by Adam's second moments.  Weight decay w adds w to the curvature, so that the loss's own may reach the limit less w
    (not for AdamW, whose decay is outside the preconditioner and is left out).

    Shapes: value ().   Units: 1 / lr, that is loss / parameter^2.   Error: exact for a quadratic loss and full batches.
    Assumes: full-batch steps; for Adam frozen second moments.   Cost: none.
    Raises: OutOfScope where the optimizer or its learning rate is not known.
    Source: Cohen et al. 2021, section 2 and appendix B (momentum); Cohen et al. 2022 (Adam).
    """
    if training.optimizer is None or training.lr is None:
        raise OutOfScope("optimizer and learning rate are not known (--optimizer, --lr)")
    if training.optimizer not in OPTIMIZERS:
        raise OutOfScope(f"no limit of stability is known for the optimizer {training.optimizer!r}; known are {', '.join(OPTIMIZERS)}")
    lr, b = training.lr, training.momentum
    limits = {"sgd": (2 + 2 * b) / lr, "nesterov": (2 + 2 * b) / (lr * (1 + 2 * b)), "adam": (2 + 2 * b) / ((1 - b) * lr), "adamw": (2 + 2 * b) / ((1 - b) * lr)}
    decay = training.weight_decay if training.optimizer in ("sgd", "nesterov") else 0.0
    source = COHEN_2022.at("section 2") if training.optimizer.startswith("adam") else COHEN_2021.at("section 2, appendix B")
    assumes = ("the loss is quadratic along the step", "full-batch steps", *(("the second moments stand still",) if training.optimizer.startswith("adam") else ()))
    return Reading.predicted("stability_limit", limits[training.optimizer] - decay, unit="loss / parameter²", source=source, assumes=assumes)


def largest_stable_lr(training: Training, sharpness: float) -> float:
    """The learning rate at which the stability limit equals the sharpness, all else equal.   Units: those of lr.   Raises: as `stability_limit`."""
    limit = float(stability_limit(training)) + (training.weight_decay if training.optimizer in ("sgd", "nesterov") else 0.0)
    decay = training.weight_decay if training.optimizer in ("sgd", "nesterov") else 0.0
    assert training.lr is not None
    return training.lr * limit / (sharpness + decay)


def hessian_trace(gauss_newton_trace: Reading, bent: str) -> Reading:
    """Trace of the Hessian of a network that is piecewise linear along every single parameter: that of its Gauss-Newton matrix.

    H = J^T H_out J + sum_k dL/df_k Hess f_k,   and (Hess f_k)_ii = 0 where f_k is piecewise linear in parameter i alone, so that tr H = tr J^T H_out J.

    `bent` says why the output is not, and is empty where it is (`core.affine.bent_by`).

    Shapes: value ().   Units: loss / parameter^2.   Error: that of the Gauss-Newton trace; the identity itself is exact, except where a unit sits on its kink.
    Assumes: every parameter enters one affine layer and what follows is piecewise linear.   Cost: none.   Raises: OutOfScope where `bent` says so.
    Source: Schraudolph 2002 (the two parts); that the second has no diagonal then is derived here.
    """
    if bent:
        raise OutOfScope(f"tr H = tr GGN holds where the output is piecewise linear along every single parameter; here {bent}")
    return gauss_newton_trace.replace(
        name="hessian_trace", role="predicted", source=SCHRAUDOLPH_2002, samples=None, details={}, interval=gauss_newton_trace.interval,
        assumes=(*gauss_newton_trace.assumes, "the output is piecewise linear along every single parameter"),
    )  # fmt: skip


def hessian_outliers(classes: int) -> Reading:
    """How many eigenvalues of a trained classifier's Hessian stand apart from the bulk: classes - 1.

    The Gauss-Newton matrix's class part is the second moment of the `classes` class means g_c of p_{i,c} grad loss_i (p the probability given to the true
    class).  Late in training every p is near 1, so their mean is nearly the gradient of the loss, which is 0 at a stationary point: classes - 1 directions
    are left.  (Sagun et al. count about `classes`; Papyan adds a mini-bulk of cross-class means below the outliers.)

    Shapes: value ().   Units: count.   Error: exact.   Assumes: a trained classifier, cross-entropy, near a stationary point.   Cost: none.
    Raises: OutOfScope for fewer than two classes.
    Source: Papyan 2020, section 4 (class-mean decomposition of the Gauss-Newton matrix).
    """
    if classes < 2:
        raise OutOfScope("outliers are predicted for classifiers of at least two classes")
    return Reading.predicted("hessian_outliers", float(classes - 1), unit="eigenvalues", source=PAPYAN_2020, assumes=("a trained classifier near a stationary point",))
