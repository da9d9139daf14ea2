"""Predictions about errors on new data: bounds that hold with a stated probability, and what calibration implies."""

from __future__ import annotations

import math

from scipy import optimize, stats

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.core.source import Source

LANGFORD_2005 = Source("langford2005")
MAURER_2004 = Source("maurer2004")
DZIUGAITE_2017 = Source("dziugaite2017")
GUO_2017 = Source("guo2017")

CALIBRATION_TOLERANCE = 0.02
"""What temperature scaling leaves of the calibration error, which bounds the gap of the means: 0.2 % to 2.4 % on 15 vision networks, at most 2 % on 12 (Guo et al. 2017, table 1)."""
FIRST_SCALE = 16.0
"""The widest noise of the PAC-Bayes grid: sigma_j = 16 x 2^(-j/2), j = 0, 1, 2, ..."""


def binary_divergence(q: float, p: float) -> float:
    """kl(q || p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)), of two coins.   Units: nats."""
    left = q * math.log(q / p) if q > 0 else 0.0
    right = (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0
    return left + right


def divergence_inversion(q: float, budget: float) -> float:
    """The largest p with kl(q || p) <= budget.   Shapes: numbers.   Units: those of q, none.   Raises: InvalidInput for q outside [0, 1] or a negative budget."""
    if not 0 <= q <= 1 or budget < 0:
        raise InvalidInput(f"q must lie in [0, 1] and the budget must not be negative; {q:g} and {budget:g} came.")
    if q == 1 or binary_divergence(q, 1 - 1e-15) <= budget:
        return 1.0
    if budget == 0:
        return q
    return float(optimize.brentq(lambda p: binary_divergence(q, p) - budget, max(q, 1e-300), 1 - 1e-15, xtol=1e-14))


def binomial_inversion(errors: int, trials: int, delta: float) -> float:
    """The largest error rate at which `errors` or fewer in `trials` still have probability `delta`: max {p : Bin(k; m, p) >= delta}.

    Units: none.   Error: rounding.   Assumes: independent trials.   Cost: none.   Raises: InvalidInput for no trial, or errors outside 0 .. trials.
    Source: Langford 2005, section 3 (binomial tail inversion).
    """
    if not 0 <= errors <= trials or trials < 1:
        raise InvalidInput(f"errors must lie in 0 .. trials; {errors} of {trials} came.")
    return 1.0 if errors == trials else float(stats.beta.ppf(1 - delta, errors + 1, trials - errors))


def held_out_bound(error_sum: float, examples: int, *, whole: bool, level: float = 0.999, scale: float = 1.0, unit: str = "") -> Reading:
    """Upper bound on the expected error from its sum over `examples` examples that training has not seen.

    Right-or-wrong examples (`whole`): the largest p with Bin(k; m, p) >= delta.  Numbers between 0 and 1 (a fraction of tokens, a clipped loss): the largest p
    with kl(mean || p) <= ln(1/delta) / m, for the moment generating function of such numbers is at most that of a coin with their mean (convexity), and
    Chernoff's bound for coins follows.

    Shapes: value ().   Units: those of the error.   Error: exact; the bound holds with probability `level` over the draw of the examples.
    Assumes: the examples are drawn independently from where the network will be used, and training has not seen them.   Cost: none.
    Raises: InvalidInput for a sum that does not fit the number of examples.
    Source: Langford 2005, section 3 (test set bound; relative entropy Chernoff bound).
    """
    if not 0 < level < 1:
        raise InvalidInput(f"level must lie between 0 and 1, not {level:g}.")
    if examples < 1 or not 0 <= error_sum <= examples * (1 + 1e-12):
        raise InvalidInput(f"A sum of {error_sum:g} does not fit {examples} numbers between 0 and 1.")
    delta = 1 - level
    value = binomial_inversion(round(error_sum), examples, delta) if whole else divergence_inversion(min(error_sum / examples, 1.0), math.log(1 / delta) / examples)
    return Reading(
        "held_out_bound", scale * value, unit, role="bound", source=LANGFORD_2005.at("section 3"), assumes=("the examples are independent and training has not seen them",),
        details={"level": level, "examples": examples, "error": scale * error_sum / examples},
    )  # fmt: skip


def pac_bayes_bound(
    train_error: float, *, draws: int, distance: float, sigma: float, index: int, examples: int, at_hand: int | None = None, level: float = 0.99
) -> Reading:  # fmt: skip
    """Upper bound on the error of the network with Gaussian noise of size sigma on every trainable parameter, from its error on the training data.

    kl(train || true) <= (KL + ln(2 sqrt(n) / delta_j)) / n   with   KL = |theta - theta_0|^2 / (2 sigma^2),

    the Kullback-Leibler divergence of N(theta, sigma^2) from the prior N(theta_0, sigma^2) about the initialisation.  Half of delta = 1 - level pays for the choice of
    sigma among sigma_j = 16 x 2^(-j/2), delta_j = (delta / 2) 6 / (pi^2 (j+1)^2); the other half for knowing the training error of the noisy network only
    from `draws` draws, kl(seen || at hand) <= ln(4 / delta) / draws, and from `at_hand` of the n examples, kl(at hand || train) <= ln(4 / delta) / at_hand.

    Shapes: value ().   Units: error rate.   Error: exact; the bound holds with probability `level` over the training data and the draws.
    Assumes: the training examples are independent; the initialisation and frozen parameters do not depend on them.   Cost: none.
    Raises: InvalidInput for fewer than 8 examples (the theorem's condition) or a sigma that is not the grid's.
    Source: Maurer 2004 (with 2 sqrt(n), for n >= 8); the prior about the initialisation and the union over its widths: Dziugaite & Roy 2017.
    """
    if examples < 8 or draws < 1:
        raise InvalidInput(f"The bound takes at least 8 examples and one draw; {examples} and {draws} came.")
    if not math.isclose(sigma, FIRST_SCALE * 2 ** (-index / 2), rel_tol=1e-9):
        raise InvalidInput(f"sigma {sigma:g} is not number {index} of the grid, {FIRST_SCALE * 2 ** (-index / 2):g}.")
    delta = 1 - level
    divergence = distance**2 / (2 * sigma**2)
    seen = divergence_inversion(train_error, math.log(4 / delta) / draws)
    if at_hand is not None and at_hand < examples:
        seen = divergence_inversion(seen, math.log(4 / delta) / at_hand)
    share = delta / 2 * 6 / (math.pi**2 * (index + 1) ** 2)
    value = divergence_inversion(seen, (divergence + math.log(2 * math.sqrt(examples) / share)) / examples)
    return Reading(
        "pac_bayes_bound", value, "", role="bound", source=MAURER_2004, assumes=("the initialisation does not depend on the training data", "training examples are independent"),
        details={"divergence": divergence, "sigma": sigma, "train_error_at_most": seen, "level": level, "examples": examples},
    )  # fmt: skip


def calibrated_error(confidence: Reading) -> Reading:
    """The error rate of a network whose confidence can be taken at its word: 1 - mean confidence.

    Calibration says P(right | confidence p) = p; the mean over inputs gives P(right) = E p.

    Shapes: value ().   Units: error rate.   Error: exact for the examples that the confidence was measured on; compare it with the errors on the same ones.
    Assumes: the network is calibrated.   Cost: none.
    Raises: InvalidInput for a confidence outside [0, 1].
    Source: Guo et al. 2017, section 2, equation (1) (perfect calibration).
    """
    value = float(confidence)
    if not 0 <= value <= 1:
        raise InvalidInput(f"A confidence lies in [0, 1]; {value:g} came.")
    return Reading.predicted("calibrated_error", 1 - value, unit="", source=GUO_2017.at("equation (1)"), assumes=("the network is calibrated",))
