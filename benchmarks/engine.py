"""CPU seconds of the engine's products against plain torch.func, one thread, interleaved, medians of five.

Run alone: OMP_NUM_THREADS=1 python benchmarks/engine.py > benchmarks/engine.md
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vjp

from gnomon.core import rng as chance
from gnomon.core.subject import Subject
from gnomon.numerics.operators import GaussNewton, Hessian, ParameterJacobian, loss_gradient


def networks():
    def convolutional():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))

    def perceptron():
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))

    for name, build in (("CNN", convolutional), ("MLP", perceptron)):
        with chance.scoped(chance.generator(0, name)):
            model = build()
        rng = chance.generator(1)
        x = chance.normal(512, 1, 12, 12, rng=rng).float()
        yield name, Subject.freeze(model, "cross_entropy", (x, chance.integers(10, 512, rng=rng)))


def plain(subject):
    """The same products as a person would write them with torch.func."""
    module, parameters = subject.module, subject.parameters
    chunks = [(block.inputs, block.targets) for block in subject.batches()]

    def unflat(v):
        return {k: part.view_as(p) for (k, p), part in zip(parameters.items(), v.split([p.numel() for p in parameters.values()]), strict=True)}

    def flat(tensors):
        return torch.cat([t.reshape(-1) for t in tensors.values()])

    def loss(p, x, y):
        return nn.functional.cross_entropy(functional_call(module, p, (x,)), y)

    def gradient(v):
        return sum(flat(grad(loss)(parameters, x, y)) for x, y in chunks) / len(chunks)

    def hessian(v):
        return sum(flat(jvp(grad(lambda p, x=x, y=y: loss(p, x, y)), (parameters,), (unflat(v),))[1]) for x, y in chunks) / len(chunks)

    def gauss_newton(v):
        total = 0
        for x, y in chunks:
            forward = lambda p, x=x: functional_call(module, p, (x,))  # noqa: E731
            z, pushed = jvp(forward, (parameters,), (unflat(v),))
            bent = jvp(grad(lambda z, y=y: nn.functional.cross_entropy(z, y)), (z,), (pushed,))[1]
            total = total + flat(vjp(forward, parameters)[1](bent)[0])
        return total / len(chunks)

    def jacobian(v):
        return torch.cat([jvp(lambda p, x=x: functional_call(module, p, (x,)), (parameters,), (unflat(v),))[1] for x, _ in chunks])

    return {"gradient": gradient, "Hessian": hessian, "Gauss-Newton": gauss_newton, "Jacobian": jacobian}


def engine(subject):
    (inputs,) = [block.inputs for block in subject.train.blocks]
    return {"gradient": lambda v: loss_gradient(subject)[1], "Hessian": Hessian(subject), "Gauss-Newton": GaussNewton(subject), "Jacobian": ParameterJacobian(subject, inputs)}


def seconds(function, v, repeats=8):
    start = time.process_time()
    for _ in range(repeats):
        function(v)
    return (time.process_time() - start) / repeats


def main():
    torch.set_num_threads(1)
    lines = [
        "# The engine against plain torch.func",
        "",
        "CPU milliseconds a product over 512 examples in four chunks, one thread, interleaved, medians of five (`benchmarks/engine.py`).",
        "",
    ]
    lines += ["| network | product | torch.func | gnomon | ratio |", "|---|---|---|---|---|"]
    for name, subject in networks():
        ours, theirs = engine(subject), plain(subject)
        v = chance.normal(subject.dimension, rng=chance.generator(2)).float()
        for product in ours:
            difference = (ours[product](v) - theirs[product](v)).norm() / theirs[product](v).norm()
            assert difference < 1e-4, (name, product, float(difference))
            times = np.array([(seconds(theirs[product], v), seconds(ours[product], v)) for _ in range(5)])
            a, b = 1e3 * np.median(times, axis=0)
            lines.append(f"| {name}, {subject.dimension:,} parameters | {product} | {a:.1f} | {b:.1f} | {np.median(times[:, 1] / times[:, 0]):.2f} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
