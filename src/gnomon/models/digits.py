"""The embedded default: a small convolutional network for digits of 8 x 8 pixels."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """A chain of convolutions, ReLU and linear layers for which the mean-field recursion at initialisation is exact in the mean.

    The convolutions' patches do not overlap and are not padded, so each pixel enters each layer once; weights and biases have PyTorch's default
    initialisation, uniform in +-1/sqrt(fan_in), whose variance is 1 / (3 fan_in).
    Shapes: input (N, 1, 8, 8), output (N, classes).
    """

    def __init__(self, *, channels: int = 16, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 2, stride=2), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 2, stride=2), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * channels, hidden), nn.ReLU(),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits.  Shapes: (N, 1, 8, 8) -> (N, classes)."""
        return self.layers(images)
