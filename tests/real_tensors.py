"""Derivatives of one real network along its own gradients, taken by autograd: nothing of the recursions, nor of stacked networks, stands here."""

import torch
from torch.func import grad, jvp

OUTPUTS = 2


def derivatives(activation, inputs, rates, parameters):
    """z (inputs, outputs), H (i, j, a, b), dH of the index patterns 011 and 001, ddI of 0011, ddII of 0011, 0101 and 0110, of one network."""
    count, every = len(inputs), tuple(range(len(parameters)))

    def output(x, *p):
        for layer in range(0, len(p), 2):
            x = p[layer] @ (activation(x) if layer else x) + p[layer + 1]
        return x

    def scaled(vector):
        return tuple(rate * part for rate, part in zip(rates, vector, strict=True))

    def dot(u, v):
        return sum((a * b).sum() for a, b in zip(u, v, strict=True))

    def nest(function, *ranges):
        if not ranges:
            return function()
        return torch.stack([nest(lambda *rest, i=i: function(i, *rest), *ranges[1:]) for i in range(ranges[0])])

    def along(i, a, vector):
        return jvp(lambda *p: grad(lambda *q: output(inputs[a], *q)[i], argnums=every)(*p), parameters, vector)[1]

    z = torch.stack([output(x, *parameters) for x in inputs])
    first = {(i, a): grad(lambda *p, i=i, a=a: output(inputs[a], *p)[i], argnums=every)(*parameters) for i in range(OUTPUTS) for a in range(count)}
    second = {(i, a, j, b): along(i, a, scaled(first[j, b])) for i in range(OUTPUTS) for a in range(count) for j in range(OUTPUTS) for b in range(count)}
    h = nest(lambda i, j, a, b: dot(first[i, a], scaled(first[j, b])), OUTPUTS, OUTPUTS, count, count)

    def differential(i, j, k):
        return nest(lambda a, b, c: dot(second[i, a, j, b], scaled(first[k, c])), count, count, count)

    def joined(i, j, k, m):
        return nest(lambda a, b, c, d: dot(second[i, a, k, c], scaled(second[j, b, m, d])), *[count] * 4)

    def third(a, b, c, d):
        u, v, w = (scaled(first[key]) for key in ((0, b), (1, c), (1, d)))
        return jvp(lambda *p: jvp(lambda *q: jvp(lambda *o: output(inputs[a], *o)[0], q, u)[1], p, v)[1], parameters, w)[1]

    return z, h, differential(0, 1, 1), differential(0, 0, 1), nest(third, *[count] * 4), joined(0, 0, 1, 1), joined(0, 1, 0, 1), joined(0, 1, 1, 0)
