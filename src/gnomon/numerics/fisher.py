"""Second moments of per-example gradients: Fisher information, exactly and with drawn labels, the empirical Fisher, the gradients' covariance; and the NTK."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Generator, Tensor, nn

from gnomon.core import loss as losses
from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Tree, leaves
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.loss import class_last
from gnomon.core.subject import Subject
from gnomon.numerics import chain, derivatives
from gnomon.numerics.derivatives import LinearMap, Route, gradients
from gnomon.numerics.measuring import measuring
from gnomon.numerics.memory import KEEP
from gnomon.numerics.operators import GaussNewton, ParameterJacobian, _Curvature, loss_gradient


class Fisher(GaussNewton):
    """The Fisher information of the network's own predictive distribution: v -> E[g g^T] v, labels drawn from the network at each input.

    F = sum_b (w_b / W) E_(y ~ p(y | x_b)) [grad loss(x_b, y) grad loss(x_b, y)^T].  Cross-entropy is -log softmax, binary cross-entropy -log of a Bernoulli and MSE -log
    of a Gaussian of variance 1/2 a component: for these the Hessian of the loss with respect to the output does not depend on the label, so that
    E[g g^T] = J^T H_out J, the Gauss-Newton matrix, exactly and without drawing.  (Where components or positions are averaged over, each one's loss is a likelihood of its own.)

    Raises: OutOfScope where the loss is no such likelihood.   Source: Martens 2020 (equality with the Gauss-Newton matrix); Kunstner et al. 2019.
    """

    def __init__(self, subject: Subject, split: str = "train", *, keep: int = KEEP) -> None:
        likelihood(subject)
        super().__init__(subject, split, keep=keep)


class MonteCarloFisher(_Curvature):
    """The Fisher information with labels drawn from the network: an unbiased estimate of `Fisher`, and a fixed matrix once it is made.

    F = sum_b (w_b / W) (1 / draws) sum_(y ~ p(y | x_b)) g g^T.  The labels depend on `rng` and on the examples' order alone, not on the split.
    Raises: OutOfScope where the loss is no likelihood, InvalidInput for less than one draw.   Source: Martens 2020; Kunstner et al. 2019.
    """

    def __init__(self, subject: Subject, split: str = "train", *, rng: Generator, draws: int = 1, keep: int = KEEP) -> None:
        if draws < 1:
            raise InvalidInput(f"draws must be at least 1, not {draws}.")
        self.family = likelihood(subject)
        super().__init__(subject, split, keep=keep)
        self.rng, self.draws = rng, draws

    def _of(self, subject: Subject, split: str) -> _Curvature:
        return type(self)(subject, split, rng=self.rng, draws=self.draws, keep=self.keep)

    def _chunks(self) -> Iterable[tuple[LinearMap, float]]:
        self._streams = [chance.child(self.rng, "labels", draw) for draw in range(self.draws)]
        return super()._chunks()

    def _map(self, block: Block, share: float, route: Route) -> LinearMap:
        output = _output(self.subject, block)
        slopes = []
        for stream in self._streams:
            targets, terms = drawn(self.family, output, block.targets, rng=stream)
            scale = terms if self.subject.loss.reduction == "mean" else 1
            slopes.append(_slope(self.subject, output, targets) * (scale / self.draws) ** 0.5)
        return chain.sandwich_map(self.subject, block, route, lambda _: lambda pushed: _summed(slopes, pushed))


class EmpiricalFisher(_Curvature):
    """The second moment of the examples' own gradients: v -> (1/N) sum_i g_i (g_i . v).  Not the Fisher information: labels are those of the data.

    g_i = N (w_i / W) grad loss_i for a mean with weights w_i of sum W, N grad loss_i for a sum, as in `gradient_gram`: the mean of the g_i is the gradient of the loss.
    Assumes: examples do not act on each other (eval mode).   Raises: OutOfScope that names the operation where the network has no derivative of its derivative.
    Source: Kunstner et al. 2019.
    """

    def _map(self, block: Block, share: float, route: Route) -> LinearMap:
        slope = _slope(self.subject, _output(self.subject, block), block.targets) * (share * len(self.subject.examples(self.split))) ** 0.5
        return chain.sandwich_map(self.subject, block, route, lambda _: lambda pushed: _summed([slope], pushed))


class GradientCovariance(EmpiricalFisher):
    """The covariance of per-example gradients, centred and divided by N: v -> (1/N) sum_i (g_i - g) ((g_i - g) . v), g the mean of the g_i.

    It is that of one example drawn from the split (not N - 1: the split is the whole, not a sample).
    Cost: a product of `EmpiricalFisher`, and one gradient once.   Source: Kunstner et al. 2019 (the second moment).
    """

    _mean: Float[Tensor, "P"] | None = None

    def _products(self, vectors: list[Float[Tensor, "P"]]) -> list[Float[Tensor, "P"]]:
        if self._mean is None:
            self._mean = loss_gradient(self.subject, self.split)[1]
        mean = self._mean
        return [product - mean.to(v.dtype) * (mean.to(v.dtype) @ v) for v, product in zip(vectors, super()._products(vectors), strict=True)]


class TangentKernel:
    """The empirical neural tangent kernel on a block of inputs, u -> J J^T u, over the trainable parameters.

    Shapes: u (N, ...) like the network's output -> the same.   Units: those of the output squared / parameter^2.
    Cost: one gradient and one forward pass in forward mode.   Source: Jacot et al. 2018.
    """

    def __init__(self, subject: Subject, inputs: Tree) -> None:
        self.jacobian = ParameterJacobian(subject, inputs)

    def __call__(self, u: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
        """J J^T u.  Shapes: (N, ...) -> (N, ...)."""
        return self.jacobian(self.jacobian.transpose(u))


def likelihood(subject: Subject) -> str:
    """Which distribution the loss is minus the log of: `categorical`, `gaussian` or `bernoulli`.

    Raises: OutOfScope for other losses, and for class weights or label smoothing.
    """
    function = subject.loss.function
    plain = getattr(function, "weight", None) is None and not getattr(function, "label_smoothing", 0.0) and getattr(function, "pos_weight", None) is None
    if plain and losses.is_classification(subject.loss) and not isinstance(function, nn.NLLLoss):
        return "categorical"
    if function in (losses.mse, F.mse_loss) or isinstance(function, nn.MSELoss):
        return "gaussian"
    if plain and (function in (losses.bce_with_logits, F.binary_cross_entropy_with_logits) or isinstance(function, nn.BCEWithLogitsLoss)):
        return "bernoulli"
    raise OutOfScope(
        f"The loss {subject.loss.name!r} is not known as minus the log of a distribution (cross-entropy, binary cross-entropy and MSE are, without class weights or smoothing), "
        "so it has no Fisher information. Use GaussNewton, the curvature that stands in its place."
    )


def drawn(family: str, output: Float[Tensor, "N ..."], targets: Tree, *, rng: Generator) -> tuple[Tree, int]:
    """Targets drawn from the network's own distribution, and how many terms of the loss they are.  Ignored targets stay, and take no draw.

    Uniform numbers come from `rng` in the examples' order, so that chunks of any size see the same ones.
    Shapes: output (N, ...) -> targets like those given.
    """
    (given,) = leaves(targets)
    if family == "categorical":
        logits = class_last(output, given)
        logits = logits.reshape(-1, logits.shape[-1])
        flat = given.reshape(-1).clone()
        kept = flat >= 0  # torch's ignore_index is -100
        cumulative = torch.softmax(logits[kept].double(), -1).cumsum(-1)
        u = chance.uniform(int(kept.sum()), rng=rng, like=cumulative)
        flat[kept] = torch.searchsorted(cumulative, u[:, None]).squeeze(1).clamp_max(logits.shape[-1] - 1).to(flat.dtype)
        return flat.view(given.shape), int(kept.sum())
    u = chance.uniform(output.numel(), rng=rng, like=output.double() if output.device.type != "mps" else output).view(output.shape)
    if family == "bernoulli":
        return (u < torch.sigmoid(output)).to(output.dtype).view(given.shape), output.numel()
    noise = torch.erfinv(2 * u - 1).clamp(-9, 9)  # erfinv is a normal number of variance 1/2
    return (output + noise.to(output.dtype)).view(given.shape), output.numel()


def _output(subject: Subject, block: Block) -> Tensor:
    with torch.no_grad():
        return subject(subject.state, block.inputs)


def _slope(subject: Subject, output: Tensor, targets: Tree) -> Tensor:
    """The gradient of a chunk's loss with respect to its output."""
    leaf = output.detach().requires_grad_()
    with torch.enable_grad():
        return gradients(subject.loss(leaf, targets), [leaf])[0]


def _summed(slopes: list[Tensor], pushed: Tensor) -> Tensor:
    """sum over slopes of d_i (d_i . u_i), example by example."""
    total = torch.zeros_like(pushed)
    for slope in slopes:
        along = (slope * pushed).flatten(1).sum(1)
        total += slope * along.view(-1, *[1] * (slope.ndim - 1))
    return total


def gradient_products(subject: Subject, v: Float[Tensor, "P"], split: str = "train") -> Float64[Tensor, "N"]:
    """The derivative of each example's own loss along a direction, g_i . v; g_i as in `EmpiricalFisher`.

    Shapes: v (P,) -> (N,) float64 on the CPU.   Cost: two forward passes.   Raises: OutOfScope where there are no test data.
    """
    data = subject.examples(split)
    total, out = subject.total_weight(split), []
    with measuring(subject):
        route, tangents, at = derivatives.route_of(subject), derivatives.split(subject, v), tuple(subject.parameters.values())
        for block in subject.batches(split):
            scale = len(data) * (subject.loss.count(block.targets) / total if subject.loss.reduction == "mean" else 1.0)
            if not scale:
                out.append(torch.zeros(len(block), dtype=torch.float64))
                continue

            def function(tensors: derivatives.Tensors, block: Block = block) -> Tensor:
                return derivatives.output_of(subject, dict(zip(subject.trainable, tensors, strict=True)), block.inputs)

            pushed = derivatives.pushforward(function, at, tangents, route)
            slope = _slope(subject, _output(subject, block), block.targets)
            out.append(scale * (slope * pushed).flatten(1).sum(1).cpu().double())
    return torch.cat(out)
