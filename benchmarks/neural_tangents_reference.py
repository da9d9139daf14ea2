"""Writes tests/data/neural_tangents.json: kernels of small networks by neural-tangents 0.6.5, for the tests of `infinite_width`.

Run it in an environment of its own: pip install "jax==0.4.30" "jaxlib==0.4.30" "neural-tangents==0.6.5" "numpy<2.1" "scipy<1.14"; then
python benchmarks/neural_tangents_reference.py.
"""

import json
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402
from neural_tangents import stax  # noqa: E402

OUT = Path(__file__).parents[1] / "tests" / "data" / "neural_tangents.json"
C_W, C_B = 1.7, 0.09
W, B = C_W**0.5, C_B**0.5


def dense(width=16, **more):
    return stax.Dense(width, W_std=W, b_std=B, **more)


def conv(size=3, stride=1, padding="SAME"):
    return stax.Conv(8, (size, size), (stride, stride), padding, W_std=W, b_std=B)


def mlp(activation):
    return stax.serial(dense(), activation, dense(), activation, dense(1))


def standard():
    kind = {"parameterization": "standard"}
    return stax.serial(dense(24, **kind), stax.Relu(), dense(32, **kind), stax.Relu(), dense(1, **kind))


VECTORS = {
    "relu": mlp(stax.Relu()), "leaky_relu": mlp(stax.LeakyRelu(0.2)), "abs": mlp(stax.Abs()), "erf": mlp(stax.Erf()), "gelu": mlp(stax.Gelu()), "sin": mlp(stax.Sin()), "cos": mlp(stax.Cos()),
    "gaussian": mlp(stax.Gaussian(1, -1)), "cube": mlp(stax.Monomial(3)),
    "sign": stax.serial(dense(), stax.Sign(), dense(1)), "standard": standard(),
    "layer_norm": stax.serial(dense(), stax.LayerNorm(eps=1e-5), stax.Relu(), dense(1)),
    "residual": stax.serial(dense(), stax.Relu(), dense(), stax.FanOut(2), stax.parallel(stax.Identity(), stax.serial(stax.Relu(), dense())), stax.FanInSum(), stax.Relu(), dense(1)),
    "concatenation": stax.serial(stax.FanOut(2), stax.parallel(stax.serial(dense(16), stax.Relu()), stax.serial(dense(16), stax.Erf())), stax.FanInConcat(-1), dense(1)),
}  # fmt: skip
IMAGES = {
    "conv_flatten": stax.serial(conv(), stax.Relu(), conv(), stax.Relu(), stax.Flatten(), dense(1)),
    "conv_valid_stride": stax.serial(conv(3, 1, "VALID"), stax.Relu(), conv(2, 2, "VALID"), stax.Erf(), stax.Flatten(), dense(1)),
    "conv_circular": stax.serial(conv(3, 1, "CIRCULAR"), stax.Relu(), conv(3, 1, "CIRCULAR"), stax.Relu(), stax.Flatten(), dense(1)),
    "conv_global": stax.serial(conv(), stax.Relu(), conv(), stax.Relu(), stax.GlobalAvgPool(), dense(1)),
    "conv_pool": stax.serial(conv(), stax.Relu(), stax.AvgPool((2, 2), (2, 2)), conv(), stax.Relu(), stax.GlobalAvgPool(), dense(1)),
    "conv_pool_flatten": stax.serial(conv(), stax.Relu(), stax.AvgPool((2, 2), (1, 1)), conv(), stax.Relu(), stax.Flatten(), dense(1)),
}


def main():
    draws = np.random.default_rng(0)
    vectors, images = draws.normal(size=(6, 5)).round(3), draws.normal(size=(4, 4, 4, 2)).round(3)
    kernels = {}
    for x, n1, networks in ((vectors, 4, VECTORS), (images, 2, IMAGES)):
        for name, (_, _, kernel) in networks.items():
            made = kernel(x[:n1], x[n1:], ("nngp", "ntk"))
            kernels[name] = {"nngp": np.asarray(made.nngp).tolist(), "ntk": np.asarray(made.ntk).tolist()}
    versions = {"neural-tangents": nt.__version__, "jax": jax.__version__, "numpy": np.__version__}
    document = {"versions": versions, "weight_variance": C_W, "bias_variance": C_B, "vectors": vectors.tolist(), "images": images.tolist(), "kernels": kernels}
    OUT.write_text(json.dumps(document, indent=0) + "\n")


if __name__ == "__main__":
    main()
