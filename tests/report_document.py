"""A whole report document, built from Readings and the judge: what the report's tests render."""

from __future__ import annotations

import copy
import functools

import numpy as np

from gnomon.core.judge import Verdict, judge
from gnomon.core.reading import Axis, Reading, jsonable
from gnomon.core.source import Source

INF = float("inf")
LAYERS = ("conv1", "relu1", "conv2", "relu2", "conv3", "relu3", "fc1", "fc2")

SOURCES = {
    "cohen2021": ("Cohen et al. 2021", "https://arxiv.org/abs/2103.00065", "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability"),
    "papyan2020": ("Papyan 2020", "https://arxiv.org/abs/2008.11865", "Traces of Class/Cross-Class Structure Pervade Deep Learning Spectra"),
    "mccandlish2018": ("McCandlish et al. 2018", "https://arxiv.org/abs/1812.06162", "An Empirical Model of Large-Batch Training"),
    "schoenholz2017": ("Schoenholz et al. 2017", "https://arxiv.org/abs/1611.01232", "Deep Information Propagation"),
    "bartlett2017": ("Bartlett et al. 2017", "https://arxiv.org/abs/1706.08498", "Spectrally-normalized margin bounds for neural networks"),
    "hutchinson1989": ("Hutchinson 1989", "https://doi.org/10.1080/03610918908812806", "A stochastic estimator of the trace of the influence matrix"),
}


def row(
    chapter, title, predicted=None, measured=None, *, relation="equal", tolerance=None, scale=None, trivial=None, because="", words="", advice=None, headline=False, verdict=None
):
    if verdict is None and predicted is not None and measured is not None:
        verdict = judge(predicted, measured, relation=relation, tolerance=tolerance, scale=scale, trivial=trivial)
    judged = verdict.to_json() if verdict else {"verdict": None, "why": "", "relation": relation, "gap": None, "interval": None, "tolerance": jsonable(tolerance), "elements": []}
    return {
        "chapter": chapter, "title": title, "headline": headline, "predicted": predicted and predicted.to_json(), "measured": measured and measured.to_json(),
        **judged, "because": because, "words": words, "advice": advice,
    }  # fmt: skip


def spectral_density():
    grid = np.linspace(-2.5, 20.0, 181)
    bulk = np.exp(-0.5 * (grid / 0.55) ** 2) / (0.55 * np.sqrt(2 * np.pi))
    peaks = sum(4e-4 * np.exp(-0.5 * ((grid - at) / 0.16) ** 2) for at in (4.1, 5.0, 5.8, 6.9, 7.7, 9.2, 11.6, 14.0, 17.3))
    density = bulk + peaks + 2e-7
    error = 0.12 * density
    axis = Axis("eigenvalue", tuple(grid.tolist()))
    return Reading("hessian_spectral_density", density, "1/eigenvalue", error=error, error_kind="probe", n=24, axes=(axis,), source=Source("papyan2020", "section 2"))


def layer_rows(rng):
    predicted = np.array([1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0, 1.0]) * 1.02
    draws = predicted * (1 + 0.04 * rng.standard_normal((12, 8)))
    draws[:, 4] *= 2.2
    axes = (Axis("layer", LAYERS),)
    expected = Reading.predicted(
        "activation_variance",
        predicted,
        unit="",
        error=0.12,
        error_kind="truncation",
        axes=axes,
        source=Source("schoenholz2017", "eq. (3)"),
        assumes=("the layers are wide", "zero padding is accounted for by the share of border pixels"),
    )
    measured = Reading.of_samples("activation_variance", draws, unit="", error_kind="seed", axes=axes)
    return expected, measured


def deep_rows(count=50):
    rng = np.random.default_rng(7)
    names = tuple(f"encoder.layers.{i}.self_attention.output_projection" for i in range(count))
    axes = (Axis("layer", names),)
    predicted = Reading.predicted(
        "gradient_variance", 0.97 ** np.arange(count), unit="", error=0.06, error_kind="truncation", axes=axes, source=Source("schoenholz2017", "eq. (7)")
    )
    draws = predicted.value * (1 + 0.03 * rng.standard_normal((8, count)))
    draws[:, 31] *= 0.6
    return predicted, Reading.of_samples("gradient_variance", draws, unit="", error_kind="seed", axes=axes)


def power_law():
    rng = np.random.default_rng(3)
    width = np.array([32.0, 64.0, 128.0, 256.0, 512.0])
    draws = 4.0 / width * np.exp(0.03 * rng.standard_normal((10, 5)))
    measured = Reading.of_samples("ntk_change", draws, unit="", error_kind="seed", axes=(Axis("width", tuple(width), scale="log"),))
    return Reading.predicted("ntk_change", -1.0, unit="", source=Source("schoenholz2017", "section 4")), measured


def class_means():
    rng = np.random.default_rng(5)
    cosines = -1 / 9 + 0.05 * rng.standard_normal((10, 10))
    cosines = (cosines + cosines.T) / 2
    np.fill_diagonal(cosines, 1.0)
    digits = tuple(str(k) for k in range(10))
    return Reading("class_mean_cosines", cosines, "", error=0.01, error_kind="sample", n=1024, axes=(Axis("class", digits), Axis("class", digits)))


@functools.cache
def _document():
    rng = np.random.default_rng(0)
    rows = [
        row("landscape", "Sharpness (largest Hessian eigenvalue)",
            Reading.predicted("stability_limit", 20.0, unit="", error=0.0, source=Source("cohen2021", "section 2"), assumes=("full-batch gradient descent", "constant learning rate")),
            Reading("top_hessian_eigenvalue", 17.3, "", error=0.7, error_kind="sample", n=1024, source=Source("cohen2021")),
            relation="at_most", because="the limit is exact for a quadratic; no slack is given", words="below the edge of stability", headline=True,
            advice="Sharpness is 17.3 and the limit 20: the learning rate may grow to 0.115 before training becomes unstable."),
        row("landscape", "Outlier eigenvalues",
            Reading.predicted("outliers", 9, unit="", source=Source("papyan2020", "section 3")), Reading("outliers", 9, "", error=0.2, error_kind="bound"),
            tolerance=0.5, because="a count: anything less than half an eigenvalue is the same number", words="one for each class but one", headline=True),
        row("landscape", "Hessian trace", None, Reading.of_samples("hessian_trace", 412 + 25 * rng.standard_normal(64), unit="loss", error_kind="probe", source=Source("hutchinson1989", "eq. (2)"))),
        row("landscape", "Spectral density of the Hessian", None, spectral_density(), words="bulk and nine outliers"),
        row("dynamics", "Gradient noise scale", None,
            Reading("gradient_noise_scale", 900.0, "examples", error=500.0, error_kind="sample", n=64, interval=(300.0, INF), source=Source("mccandlish2018", "eq. (2.7)")),
            words="your batch (128) is far below", headline=True, advice="Noise limits you: batch 512 needs about 0.3 times the steps if the learning rate may grow with it; beyond the noise scale the gain ends."),
        row("dynamics", "Critical batch size for linear scaling", Reading.predicted("critical_batch", 640.0, unit="examples", error=200.0, error_kind="truncation", source=Source("mccandlish2018", "eq. (2.9)")),
            Reading("critical_batch", 700.0, "examples", error=150.0, error_kind="sample", n=16), words="undecided on 1,024 examples"),
        row("kernels", "Change of the tangent kernel during training", Reading.predicted("ntk_change", 0.05, unit="", error=0.0, source=Source("schoenholz2017", "section 4")),
            Reading("ntk_change", 0.71, "", error=0.01, error_kind="sample", n=256), relation="at_most", because="below one twentieth the linearised model describes training",
            words="rich: the linearised model is not your model", headline=True),
        row("kernels", "Decay of the change with width", *power_law(), relation="exponent", tolerance=0.1, because="the next order in 1/width at width 32", words="falls as one over width"),
        row("generalization", "Test error against the margin bound", Reading("margin_bound", 41.5, "", error=0.0, role="bound", source=Source("bartlett2017", "Theorem 1.1"), assumes=("examples are independent",)),
            Reading("test_error", 0.083, "", error=0.003, error_kind="sample", n=10_000), relation="at_most", trivial=1.0, words="the bound says nothing: an error rate never exceeds 1", headline=True),
        row("generalization", "Gap between test and training error", None, Reading("generalization_gap", 0.041, "", error=0.004, error_kind="sample", n=10_000)),
        row("effective", "Variance of the activations at initialisation", *layer_rows(rng), because="the next order, 1/width, at the narrowest layer (16 channels)",
            words="conv3 is not as declared", headline=True, advice="Layer conv3 carries 2.2 times the declared variance: its weights were scaled by 1.48; re-draw it or declare it with --init conv3=0.28."),
        row("effective", "Variance of the gradients, layer by layer", *deep_rows(), because="the next order in 1/width", words="one layer of fifty differs"),
        row("effective", "Order of the layers by gradient", Reading.predicted("layer_order", np.arange(4.0), unit="", axes=(Axis("layer", LAYERS[:4]),)),
            Reading.of_samples("layer_order", np.array([0.1, 0.2, 0.35, 0.3]) + 0.004 * rng.standard_normal((10, 4)), unit="", error_kind="seed", axes=(Axis("layer", LAYERS[:4]),)), relation="order", tolerance=0.001, scale=0.1),
        row("representation", "Neural collapse: within-class against between-class variance", Reading.predicted("collapse", 0.0, unit="", source=Source("papyan2020")),
            Reading("collapse", 0.34, "", error=0.02, error_kind="sample", n=1024), tolerance=0.05, scale=1.0, because="one twentieth of the value at initialisation", words="not collapsed: training error is not 0", headline=True),
        row("representation", "Cosines between class means", None, class_means()),
        row("robustness", "Smallest adversarial perturbation", Reading.predicted("radius", 0.43, unit="", error=0.05, error_kind="truncation"), Reading("radius", 0.41, "", error=0.006, error_kind="sample", n=200),
            because="second order of the expansion of the logits", words="agrees to first order", headline=True),
        row("robustness", "Certified radius", Reading.predicted("certified_radius", 0.2, unit=""), Reading("certified_radius", 0.3, "", error=0.01, error_kind="sample", n=100), words="",
            verdict=Verdict("out_of_scope", "the network holds a BatchNorm layer in training mode, which has no Lipschitz constant", "at_least")),
    ]  # fmt: skip
    theory = {
        "landscape": ("Loss landscape", r"Gradient descent on a quadratic is stable while the sharpness obeys $\lambda_{\max} \le 2/\eta$. Training of deep networks raises $\lambda_{\max}$ until it meets this limit and then stays there, at the edge of stability. With $C$ classes the Hessian has $C - 1$ outliers, whose eigenvectors lie in the range of the class means.", ["the loss is twice differentiable", "the learning rate is constant"]),
        "dynamics": ("Dynamics of training", r"The noise scale $B_{\mathrm{noise}} = \mathrm{tr}\,\Sigma / |G|^2$ is the batch size at which noise and gradient weigh the same.", ["per-example gradients are independent"]),
        "kernels": ("Infinite width", r"In the limit of infinite width the tangent kernel $\Theta(x, x')$ stays as it was at initialisation; at width $n$ it moves by $O(1/n)$.", []),
        "generalization": ("Generalisation", r"With probability $1 - \delta$ the test error is at most the margin error plus $\tilde{O}\left(\frac{\prod_i \|W_i\|}{\gamma \sqrt{n}}\right)$.", ["examples are independent draws"]),
        "effective": ("Signal at initialisation", r"The variance of the pre-activations obeys $q^{l+1} = \sigma_w^2 \int \mathcal{D}z\, \phi(\sqrt{q^l} z)^2 + \sigma_b^2$, one step a layer.", ["weights are independent and Gaussian", "the layers are wide"]),
        "representation": ("Representation", r"At the end of training features collapse onto their class means: $\mathrm{tr}(\Sigma_W \Sigma_B^{+}) \to 0$.", ["training error is 0"]),
        "robustness": ("Robustness", r"To first order the distance to the decision boundary is $r = |f_i - f_j| / \|\nabla (f_i - f_j)\|$.", []),
    }  # fmt: skip
    return {
        "schema": "gnomon/report/1",
        "subject": {
            "name": "CNN", "data": "Fashion-MNIST", "parameters": 1_199_882, "trainable": 1_199_882, "classes": 10, "loss": "cross_entropy", "reduction": "mean",
            "train": {"examples": 1024, "population": 60_000}, "test": {"examples": 10_000},
            "training": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0005, "batch_size": 128, "steps": 4680, "second_moment": False},
            "layers": [{"name": name, "kind": "Conv2d" if "conv" in name else "ReLU" if "relu" in name else "Linear", "fan_in": 9 * 2**i, "variance": 2.0} for i, name in enumerate(LAYERS)],
            "fingerprint": "9f2d" * 16,
        },
        "plan": {"budget": 300.0, "seed": 0, "threads": 2, "entries": [
            {"instrument": "top_hessian_eigenvalue", "at": "end", "examples": 1024, "knob": None, "value": None, "gradients": 60.0},
            {"instrument": "hessian_trace", "at": "end", "examples": 1024, "knob": "probes", "value": 64, "gradients": 128.0},
            {"instrument": "gradient_noise_scale", "at": "end", "examples": 1024, "knob": "blocks", "value": 64, "gradients": 1.5},
            {"instrument": "activation_variance", "at": "initial", "examples": 256, "knob": "networks", "value": 12, "gradients": 3.0},
        ]},
        "rows": rows,
        "chapters": [{"name": name, "title": title, "theory": text, "assumes": assumes} for name, (title, text, assumes) in theory.items()],
        "advice": [r["advice"] for r in rows if r["advice"]],
        "skipped": [
            {"what": "layer norm2 in the kernel recursion", "chapter": "kernels", "why": "BatchNorm has no critical point (Yang et al. 2019)"},
            {"what": "preconditioned sharpness", "chapter": "landscape", "why": "it is Adam's limit and the optimizer here is SGD"},
            {"what": "privacy", "chapter": "generalization", "why": "needs opacus: pip install 'gnomon[privacy]'"},
        ],
        "sources": {key: {"text": text, "url": url, "bibtex": f"@article{{{key},\n  author = {{{text[:-5]}}},\n  title = {{{title}}},\n  year = {{{text[-4:]}}},\n}}"} for key, (text, url, title) in SOURCES.items()},
        "again": "gnomon examine net.py:make_model --weights w.safetensors --data fashion-mnist --lr 0.1 --momentum 0.9 --batch-size 128 --budget 5m --seed 0",
        "environment": {"gnomon": "0.1.0", "code": "0123456789abcdef", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.3.0", "scipy": "1.17.0", "system": "Linux", "machine": "x86_64", "threads": 2, "device": "cpu"},
        "run": {"started": "2026-01-01T10:00:00+00:00", "seconds": 243.7, "peak_bytes": 1_930_000_000, "host": "workstation"},
    }  # fmt: skip


def document():
    """A fresh copy of the document, free to be changed."""
    return copy.deepcopy(_document())


def chapters_only(*names):
    """The document with these chapters alone."""
    made = document()
    made["rows"] = [r for r in made["rows"] if r["chapter"] in names]
    made["chapters"] = [c for c in made["chapters"] if c["name"] in names]
    return made
