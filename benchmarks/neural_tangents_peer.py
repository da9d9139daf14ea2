"""neural-tangents as a process that answers on a pipe: one line of JSON in (case, data, where to write the kernel), one line of JSON out (CPU seconds, whether compiled).

Started by benchmarks/kernels.py with the interpreter of an environment of its own: pip install "jax==0.4.30" "jaxlib==0.4.30" "neural-tangents==0.6.5" "numpy<2.1" "scipy<1.14".
"""

import json
import os
import sys
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax

jax.config.update("jax_enable_x64", True)

import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402
from neural_tangents import stax  # noqa: E402

W, B = 2.0**0.5, 0.1


def dense(width=512):
    return stax.Dense(width, W_std=W, b_std=B)


def perceptron():
    return stax.serial(*[layer for _ in range(3) for layer in (dense(), stax.Relu())], dense(1))


def convolutional(*head):
    return stax.serial(*[layer for _ in range(5) for layer in (stax.Conv(64, (3, 3), padding="SAME", W_std=W, b_std=B), stax.Relu())], *head, dense(1))


CASES = {"perceptron": perceptron(), "flatten": convolutional(stax.Flatten()), "pooling": convolutional(stax.GlobalAvgPool())}
KERNELS = {name: jax.jit(network[2], static_argnames="get") for name, network in CASES.items()}


def main():
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    print(json.dumps({"jax": jax.__version__, "neural-tangents": nt.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        x = jax.numpy.asarray(np.load(asked["data"]))
        start = time.process_time()
        made = KERNELS[asked["case"]](x, None, get="ntk").block_until_ready()
        seconds = time.process_time() - start
        np.save(asked["out"], np.asarray(made))
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
