"""A residual network for images of 8 to 32 pixels, small enough for a laptop's processor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, arXiv 1512.03385, figure 2): `[B, C, H, W]` to
    `[B, out, H/stride, W/stride]`, rounded up.

    Where the shape changes, the shortcut averages pixels and a 1x1 convolution changes the channels, so that no
    pixel is dropped (He et al. 2018, arXiv 1812.01187, ResNet-D).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity(),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm whose zero weight makes the block start as its shortcut."""
        return self.norm2

    def forward(self, images: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(images)), inplace=True)
        inner = self.norm2(self.conv2(inner))
        return functional.relu(inner + self.shortcut(images), inplace=True)


class SmallResNet(nn.Module):
    """Images `[B, in_channels, H, W] float32`, H and W from 8 pixels, to logits `[B, num_classes] float32`.

    `blocks[i]` residual blocks of `width * 2**i` channels make stage i; every stage after the first halves the
    image. `stem_stride=2` halves it once more at the entrance, which makes the net about four times cheaper.

        width=16, blocks=(1, 1, 1), 28x28:  conv 16x28x28 | 16x28x28 | 32x14x14 | 64x7x7 | mean | linear
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
        stem_stride: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, stride=stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            out_channels = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(ResidualBlock(channels, out_channels, stride))
                channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.norm(self.stem(images)), inplace=True)
        features = self.stages(features).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits


def small_resnet(
    num_classes: int,
    in_channels: int = 3,
    *,
    width: int = 16,
    blocks: Sequence[int] = (1, 1, 1),
    stem_stride: int = 1,
    dropout: float = 0.0,
) -> SmallResNet:
    """The residual net for small images; the defaults have 78,000 parameters at 10 classes."""
    return SmallResNet(num_classes, in_channels, width=width, blocks=blocks, stem_stride=stem_stride, dropout=dropout)
