"""Images of ten classes: scikit-learn's digits, MNIST and Fashion-MNIST."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnomon.core import rng as chance
from gnomon.data import idx

Pair = tuple[Tensor, Tensor]
TEST_DIGITS = 360


def digits(*, standardise: bool = True) -> tuple[Pair, Pair]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, a fifth of them for testing; the split is always the same, so that no test image is ever trained on.

    Pixels are divided by 16; with `standardise`, the mean of the training pixels is subtracted and the result divided by their standard deviation.
    Shapes: images (N, 1, 8, 8) float32, labels (N,) int64; 1,437 for training and 360 for testing.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = chance.permutation(len(data.target), rng=chance.generator(0, "digits split")).numpy()
    test, train = np.split(order, [TEST_DIGITS])
    pixels = data.images / 16.0
    return _pairs(pixels[train], data.target[train], pixels[test], data.target[test], standardise)


def mnist(*, standardise: bool = True) -> tuple[Pair, Pair]:
    """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels.

    Pixels are divided by 255; with `standardise`, the mean of the training pixels (0.1307) is subtracted and the result divided by their standard
    deviation (0.3081).
    Shapes: images (N, 1, 28, 28) float32, labels (N,) int64.   Raises: InvalidInput where the files are broken or cannot be fetched.
    """
    return _from_idx(idx.MNIST, standardise)


def fashion_mnist(*, standardise: bool = True) -> tuple[Pair, Pair]:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28 x 28 pixels.

    Pixels are divided by 255; with `standardise`, the mean of the training pixels (0.2860) is subtracted and the result divided by their standard
    deviation (0.3530).
    Shapes: images (N, 1, 28, 28) float32, labels (N,) int64.   Raises: InvalidInput where the files are broken or cannot be fetched.
    """
    return _from_idx(idx.FASHION_MNIST, standardise)


def _from_idx(archive: idx.Archive, standardise: bool) -> tuple[Pair, Pair]:
    found = idx.arrays(archive)
    images, labels = ([found[f"{split}-{part}-ubyte"] for split in ("train", "t10k")] for part in ("images-idx3", "labels-idx1"))
    return _pairs(images[0] / np.float32(255), labels[0], images[1] / np.float32(255), labels[1], standardise)


def _pairs(train: Any, train_labels: Any, test: Any, test_labels: Any, standardise: bool) -> tuple[Pair, Pair]:
    mean, deviation = (float(train.mean(dtype=np.float64)), float(train.std(dtype=np.float64))) if standardise else (0.0, 1.0)

    def pair(images: Any, labels: Any) -> Pair:
        scaled = ((images - mean) / deviation).astype(np.float32)[:, None]
        return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))

    return pair(train, train_labels), pair(test, test_labels)
