"""A small convolutional network that is piecewise linear, and as little curved as one likes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bent(nn.Module):
    """max(z, 0) + c tanh z: ReLU with a part c of a curved activation."""

    def __init__(self, curvature: float = 0.0) -> None:
        super().__init__()
        self.curvature = curvature

    def forward(self, z: Tensor) -> Tensor:
        """The activation.  Shapes: any."""
        return torch.relu(z) + self.curvature * torch.tanh(z)


class PiecewiseCNN(nn.Sequential):
    """A convolution, batch normalisation (with drawn running statistics), max pooling and linear layers: each parameter enters through one affine layer.

    Shapes: input (N, 1, 6, 6), output (N, classes).   `curvature` bends the activation, `Bent`.
    """

    def __init__(self, *, channels: int, classes: int = 3, curvature: float = 0.0) -> None:
        norm = nn.BatchNorm2d(channels)
        norm.running_mean, norm.running_var = torch.randn(channels), torch.rand(channels) + 0.5
        super().__init__(
            nn.Conv2d(1, channels, 3), norm, Bent(curvature), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(4 * channels, 2 * channels), Bent(curvature), nn.Linear(2 * channels, classes),
        )  # fmt: skip
