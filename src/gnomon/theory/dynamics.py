"""Predictions about stochastic gradient steps: what one step does to the loss, how far a larger batch helps; and, from `stochastic/`, SGD as a process in time.

`stochastic.quadratic` and `stationary`: where SGD settles about a minimum, three ways, and where it diverges; `moments`: its stochastic differential equations;
`scaling`: larger batches; `flow`: the flow that gradient descent follows; `langevin`, `fokker_planck`, `escape`: noisy descent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.landscape import largest_stable_lr as largest_stable_lr
from gnomon.theory.landscape import stability_limit as stability_limit
from gnomon.theory.stochastic.escape import kramers_rate as kramers_rate
from gnomon.theory.stochastic.escape import mean_passage_time as mean_passage_time
from gnomon.theory.stochastic.flow import implicit_regularizer as implicit_regularizer
from gnomon.theory.stochastic.flow import modified_loss as modified_loss
from gnomon.theory.stochastic.fokker_planck import fokker_planck as fokker_planck
from gnomon.theory.stochastic.fokker_planck import fokker_planck_generator as fokker_planck_generator
from gnomon.theory.stochastic.fokker_planck import relaxation_rate as relaxation_rate
from gnomon.theory.stochastic.langevin import gibbs_density as gibbs_density
from gnomon.theory.stochastic.langevin import sgld_density as sgld_density
from gnomon.theory.stochastic.langevin import sgld_variance as sgld_variance
from gnomon.theory.stochastic.moments import averaged_covariance as averaged_covariance
from gnomon.theory.stochastic.moments import robbins_monro_covariance as robbins_monro_covariance
from gnomon.theory.stochastic.moments import sde_losses as sde_losses
from gnomon.theory.stochastic.moments import step_losses as step_losses
from gnomon.theory.stochastic.quadratic import LeastSquares as LeastSquares
from gnomon.theory.stochastic.quadratic import Quadratic as Quadratic
from gnomon.theory.stochastic.quadratic import mean_limit as mean_limit
from gnomon.theory.stochastic.quadratic import mean_square_limit as mean_square_limit
from gnomon.theory.stochastic.scaling import critical_batch_size as critical_batch_size
from gnomon.theory.stochastic.scaling import scaled as scaled
from gnomon.theory.stochastic.scaling import scaling_break as scaling_break
from gnomon.theory.stochastic.scaling import scaling_departure as scaling_departure
from gnomon.theory.stochastic.scaling import steps_and_examples as steps_and_examples
from gnomon.theory.stochastic.stationary import discrete_covariance as discrete_covariance
from gnomon.theory.stochastic.stationary import effective_temperature as effective_temperature
from gnomon.theory.stochastic.stationary import exact_covariance as exact_covariance
from gnomon.theory.stochastic.stationary import excess_loss as excess_loss
from gnomon.theory.stochastic.stationary import ou_covariance as ou_covariance
from gnomon.theory.stochastic.stationary import sde_covariance as sde_covariance
from gnomon.theory.stochastic.stationary import stationary_covariances as stationary_covariances
from gnomon.theory.stochastic.stationary import variance_over_ou as variance_over_ou

MCCANDLISH_2018 = Source("mccandlish2018")
GOYAL_2017 = Source("goyal2017")


def linear_scaling_limit(batch_size: int) -> Reading:
    """The noise scale that must at least be there for the linear-scaling rule (k times the batch, k times the learning rate) to hold at this batch size.

    The learning rate that lowers the loss most in one step is lr(B) = lr_max / (1 + B_noise / B): in proportion to B while B << B_noise, and half of
    lr_max at B = B_noise.

    Shapes: value ().   Units: examples.   Error: exact; the change is gradual, by a factor of two about B_noise.
    Assumes: a quadratic loss along the step, and a Hessian that weighs all directions alike, so that B_noise = tr Sigma / |G|^2.   Cost: none.
    Raises: InvalidInput for a batch below one example.
    Source: McCandlish et al. 2018, section 2.2; the rule: Goyal et al. 2017, section 2.1.
    """
    _positive(batch_size=batch_size)
    assumes = ("the loss is quadratic along a step", "the Hessian weighs all directions alike")
    return Reading.predicted("gradient_noise_scale", float(batch_size), unit="examples", source=MCCANDLISH_2018.at("section 2.2"), assumes=assumes)


def steps_ratio(noise_scale: float, batch: float, new_batch: float) -> float:
    """How many steps a new batch size needs for the same progress, relative to the old one, the learning rate being the best for each.

    S(B') / S(B) = (1 + B_noise / B') / (1 + B_noise / B)

    Units: none.   Error: exact within its assumptions.   Assumes: as `linear_scaling_limit`, all along the training.   Cost: none.
    Raises: InvalidInput for batches below one example, or a negative noise scale.
    Source: McCandlish et al. 2018, sections 2.2 and 2.3 (each step gains 1 / (1 + B_noise / B) of what a full-batch one does).
    """
    _positive(batch=batch, new_batch=new_batch)
    if noise_scale < 0:
        raise InvalidInput(f"A noise scale is not negative; {noise_scale:g} came.")
    return (1 + noise_scale / new_batch) / (1 + noise_scale / batch)


def lr_ratio(noise_scale: float, batch: float, new_batch: float) -> float:
    """How much the learning rate may grow with the batch: lr(B') / lr(B) = (1 + B_noise / B) / (1 + B_noise / B').

    Units: none.   Error: exact within its assumptions.   Assumes: as `linear_scaling_limit`.   Cost: none.   Raises: as `steps_ratio`.
    Source: McCandlish et al. 2018, section 2.2.
    """
    return 1 / steps_ratio(noise_scale, batch, new_batch)


def learning_rate_curve(noise_scale: float, batch: int, *, doublings: int = 8) -> Reading:
    """The learning rate that a batch of 1/16 to 2^doublings times the present one may have, relative to the present one.

    lr(B') / lr(B) = (1 + B_noise / B) / (1 + B_noise / B'), against B' / B for the linear-scaling rule.

    Shapes: value (doublings + 5,), fewer where the batch cannot be halved.   Units: none.   Error: exact within its assumptions.
    Assumes: as `linear_scaling_limit`.   Cost: none.   Raises: as `steps_ratio`.
    Source: McCandlish et al. 2018, section 2.2.
    """
    batches = [batch * 2.0**k for k in range(-4, doublings + 1) if batch * 2.0**k >= 1]
    values = [lr_ratio(noise_scale, batch, new) for new in batches]
    axis = Axis("batch size", tuple(batches), "examples", "log")
    return Reading.predicted("learning_rate_ratio", values, unit="", axes=(axis,), source=MCCANDLISH_2018.at("section 2.2"))


def sgd_step(first: Sequence[float], second: Sequence[float], lr: float) -> Reading:
    """Change of the loss after one step theta' = theta - lr g_B, to second order, averaged over batches.

    dL = -lr G . g_B + lr^2 / 2  g_B' H g_B

    Shapes: `first` (draws,) holds G . g_B, `second` (draws,) g_B' H g_B; value ().   Units: loss.
    Error: truncation: twice the next order, were the series geometric: 2 |second term|^2 / |first term|, averaged over batches; twice, for it need not be.
    Assumes: a loss with three derivatives.   Cost: none.
    Raises: InvalidInput where the two have no, or not as many, batches.
    Source: McCandlish et al. 2018, section 2.2 (their expansion of the loss about a step).
    """
    _positive(lr=lr)
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise InvalidInput(f"first and second must hold one number for each batch; their shapes are {one.shape} and {two.shape}.")
    linear, quadratic = -lr * one, lr**2 / 2 * two
    # where the first term vanishes (a stationary point) the series says nothing of its next term: as large as the second
    following = 2 * np.where(np.abs(linear) > np.abs(quadratic), quadratic**2 / np.maximum(np.abs(linear), 1e-300), np.abs(quadratic))
    return Reading.predicted(
        "sgd_step_change", float((linear + quadratic).mean()), unit="loss", error=float(following.mean()), error_kind="truncation",
        source=MCCANDLISH_2018.at("section 2.2"), assumes=("the loss has three derivatives along the step",),
        details={"first_order": float(linear.mean()), "second_order": float(quadratic.mean())},
    )  # fmt: skip


def best_step(lr: float, first_order: float, second_order: float) -> float:
    """The learning rate that lowers the loss most in one step, from the two terms at another one: lr |first| / (2 second).

    The minimum over lr' of first lr' / lr + second (lr' / lr)^2.

    Units: those of lr.   Error: that of the expansion.   Assumes: first < 0 < second.   Cost: none.   Raises: InvalidInput where it has no minimum.
    Source: McCandlish et al. 2018, section 2.2.
    """
    if first_order >= 0 or second_order <= 0:
        raise InvalidInput(f"a step has a best length only where its slope is negative and its curvature positive; {first_order:g} and {second_order:g} came.")
    return -lr * first_order / (2 * second_order)


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise InvalidInput(f"{name.replace('_', ' ')} must be above 0, not {value:g}.")
