"""Networks that a recipe may name, as users of torch write them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from emu.nn import Activation


class Block(nn.Module):
    """The basic block of a residual network: two 3 x 3 convolutions beside a shortcut.

    Activations are cast, and their errors, where the configuration says so (`Activation`).

    Where the size changes, the shortcut takes every second pixel and fills up with zero channels
    (option A of arXiv 1512.03385, section 4.2).
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act1, self.act2 = Activation(), Activation()
        self.stride, self.fill = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(F.relu(self.norm1(self.conv1(x))))
        y = self.norm2(self.conv2(y))
        if self.fill or self.stride > 1:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, 0, self.fill))
        return self.act2(F.relu(y + x))


def resnet20(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The residual network of 20 layers for images of `shape` (C, H, W) (arXiv 1512.03385)."""
    widths = [16] * 3 + [32] * 3 + [64] * 3
    blocks = [Block(before, width, 1 + (width > before))
              for before, width in zip([16, *widths[:-1]], widths, strict=True)]
    return nn.Sequential(nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16),
                         nn.ReLU(), Activation(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(64, classes))


def plain(model: nn.Module) -> nn.Module:
    """The model without the casts that it names itself, changed in place: for float torch."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, Activation):
                setattr(parent, name, nn.Identity())
    return model


class Transformer(nn.Module):
    """A transformer encoder over tokens (N, length) that classifies by its first place."""

    def __init__(self, tokens: int, length: int, classes: int, width: int = 32, heads: int = 4,
                 layers: int = 2):
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.token(x) + self.place(torch.arange(x.shape[1]))
        return self.head(self.encoder(y)[:, 0])


def transformer(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small transformer for tokens of `shape` (length,), of which there are `classes`."""
    return Transformer(classes, shape[0], classes)


MODELS = {"resnet20": resnet20, "transformer": transformer}
