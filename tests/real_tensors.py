"""Moments of outputs, tangent kernels and their differentials over ensembles of real networks, with every derivative taken by autograd: nothing of the recursions stands here."""

import itertools
import math

import torch
from torch.func import grad, jvp, vmap

OUTPUTS = 2


def estimates(activation, inputs, *, depth, width, c_w, c_b, weight_rate, bias_rate, members, seed):
    """n times the moments that define each tensor (G1 and H1: the means themselves) over one block of networks with two outputs."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs.shape[1]] + [width] * (depth - 1) + [OUTPUTS]
    parameters, rates = [], []
    for fan_in, fan_out in itertools.pairwise(sizes):
        parameters += [torch.randn(members, fan_out, fan_in, generator=generator, dtype=torch.float64) * math.sqrt(c_w / fan_in)]
        parameters += [torch.randn(members, fan_out, generator=generator, dtype=torch.float64) * math.sqrt(c_b)]
        rates += [weight_rate / fan_in, bias_rate]
    made = vmap(lambda *p: derivatives(activation, inputs, rates, p))(*parameters)
    return {name: value.numpy() for name, value in moments(width, *made).items()}


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


def moments(n, z, h, dh_p, dh_q, dd_one, s, t, u):
    """The moments that define the tensors, of two different outputs 0 and 1."""
    members = len(z)

    def mean(subscripts, *parts):
        return torch.einsum(subscripts, *parts) / members

    x, y = z[:, :, 0], z[:, :, 1]
    xx, yy = torch.einsum("ma,mb->mab", x, x), torch.einsum("ma,mb->mab", y, y)
    theta = (h[:, 0, 0].mean(0) + h[:, 1, 1].mean(0)) / 2
    off = h[:, 0, 1]
    return {
        "G1": (xx.mean(0) + yy.mean(0)) / 2, "H1": theta,
        "V": n * (mean("mab,mcd->abcd", xx, yy) - torch.einsum("ab,cd->abcd", xx.mean(0), yy.mean(0))),
        "A": n * mean("mab,mcd->abcd", h[:, 0, 0] - theta, h[:, 1, 1] - theta), "B": n * mean("mac,mbd->abcd", off, off),
        "D": n * (mean("mab,mcd->abcd", xx, h[:, 1, 1] - theta) + mean("mab,mcd->abcd", yy, h[:, 0, 0] - theta)) / 2, "F": n * mean("ma,mb,mcd->acbd", x, y, off),
        "P": n * mean("mabc,md->abcd", dh_p, x), "Q": n * mean("mabc,md->abcd", dh_q, y), "R": n * dd_one.mean(0), "S": n * s.mean(0),
        "T": n * torch.einsum("abcd->acdb", t.mean(0)), "U": n * torch.einsum("abcd->adbc", u.mean(0)),
    }  # fmt: skip
