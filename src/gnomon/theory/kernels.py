"""Networks of infinite width: their kernels from the module, and what the lazy regime predicts of wide ones."""

from __future__ import annotations

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.theory.infinite.disk import DiskCost as DiskCost
from gnomon.theory.infinite.disk import DiskKernel as DiskKernel
from gnomon.theory.infinite.disk import on_disk as on_disk
from gnomon.theory.infinite.inference import Prediction as Prediction
from gnomon.theory.infinite.inference import gradient_flow as gradient_flow
from gnomon.theory.infinite.inference import posterior as posterior
from gnomon.theory.infinite.inference import ridge_regression as ridge_regression
from gnomon.theory.infinite.kernel import Kernel as Kernel
from gnomon.theory.infinite.kernel import infinite_width as infinite_width
from gnomon.theory.infinite.likelihood import Likelihood as Likelihood
from gnomon.theory.infinite.likelihood import log_marginal_likelihood as log_marginal_likelihood
from gnomon.theory.infinite.matrix import DiskMatrix as DiskMatrix
from gnomon.theory.infinite.solve import NotPositiveDefinite as NotPositiveDefinite
from gnomon.theory.infinite.solve import SolveCost as SolveCost
from gnomon.theory.infinite.solve import Solved as Solved
from gnomon.theory.infinite.solve import solve as solve
from gnomon.theory.infinite.solve import solve_cost as solve_cost

JACOT_2018 = Source("jacot2018")
LEE_2019 = Source("lee2019")
BARATIN_2021 = Source("baratin2021")

LIMIT = "the limit of infinite width (or output scale), in which features do not move"


def kernel_movement() -> Reading:
    """How far training moves the NTK in the lazy limit, relative to its size at initialisation: not at all.

    |Theta_T - Theta_0| / |Theta_0| -> 0 as the width grows, at fixed depth and training time; the same as the scale of the output grows.

    Shapes: value ().   Units: none.   Error: exact in the limit.   Assumes: the lazy limit.   Cost: none.
    Source: Jacot et al. 2018 (width); Chizat et al. 2019 (output scale).
    """
    return Reading.predicted("ntk_movement", 0.0, unit="", source=JACOT_2018, assumes=(LIMIT,))


def linearisation_error() -> Reading:
    """What the linearisation at initialisation misses of the change of the outputs, in the lazy limit: nothing.

    |f(w_T) - f(w_0) - J(w_0) (w_T - w_0)| / |f(w_T) - f(w_0)| -> 0 as the width grows.

    Shapes: value ().   Units: none.   Error: exact in the limit, and for a network that is linear in its parameters.   Assumes: the lazy limit.   Cost: none.
    Source: Lee et al. 2019.
    """
    return Reading.predicted("linearised_outputs", 0.0, unit="", source=LEE_2019, assumes=(LIMIT,))


def frozen_spectrum(initial: Reading) -> Reading:
    """The NTK's eigenvalues at the end of training, in the lazy limit: those at initialisation.

    Shapes: value that of `initial`.   Units: those of `initial`.   Error: that of `initial`.   Assumes: the lazy limit.   Cost: none.
    Source: Jacot et al. 2018.
    """
    return initial.replace(role="predicted", source=JACOT_2018, assumes=(LIMIT, *initial.assumes), interval=initial.interval)


def aligned_kernel(initial: Reading) -> Reading:
    """The least alignment of the NTK with the targets at the end of a training that moves features: that at initialisation.

    Shapes: value ().   Units: none.   Error: that of `initial`.   Assumes: features move; a regularity seen in experiments, not a theorem.   Cost: none.
    Source: Baratin et al. 2021 (tangent features align with the task during training).
    """
    return initial.replace(
        role="predicted", source=BARATIN_2021, assumes=("kernels that move align: a regularity of experiments, not a theorem", *initial.assumes), interval=initial.interval
    )


def output_scale(movement: float, wanted: float) -> float:
    """The factor on the network's output, zero at initialisation, at which the relative movement of its derivative is `wanted` rather than `movement`.

    To first order the relative change of the derivative is proportional to 1 / scale, so that scale = movement / wanted.

    Units: none.   Error: of higher order in the movement.   Assumes: squared loss, and the same targets fitted.   Cost: none.
    Raises: InvalidInput for movements that are not positive.
    Source: Chizat et al. 2019.
    """
    if movement <= 0 or wanted <= 0:
        raise InvalidInput(f"Movements must be above 0, not {movement:g} and {wanted:g}.")
    return movement / wanted
