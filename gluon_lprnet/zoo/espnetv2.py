"""ESPNetv2 (arXiv 1811.11431, its Figures 1 and 2, Table 1 and section 3).

Its authors' program drops a fifth of the pooled features in training, and does not reinforce the last stage; the paper
says neither, so this does not drop and reinforces each stage.
"""
import math
from collections import namedtuple
from typing import Any

from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..blocks import ConvBNReLU
from .network import Network
from .registry import register

# The first unit of a stage halves the feature map. The limits are the largest receptive fields of its branches and of
# those of the other units.
Row = namedtuple('Row', 'channels units first_limit limit')

BRANCHES = 4
IMAGE_CHANNELS = 3
STEM_CHANNELS = 32
LAYOUT = (
    Row(64, 1, 13, None),
    Row(128, 4, 11, 9),
    Row(256, 8, 9, 7),
    Row(512, 4, 7, 5),
)


def _last_channels(width: float) -> int:
    return 1024 if width <= 1.5 else 1280


def _dilations(limit: int) -> list[int]:
    """Of the branches in ascending order: receptive fields of 3, 5, 7 and 9, or 3 where that is beyond the limit."""
    return sorted(1 + branch if 3 + 2 * branch <= limit else 1 for branch in range(BRANCHES))


class ConvBNPReLU(ConvBNReLU):
    """A bias-free convolution with batch normalization and PReLU, which learns a slope for each channel.

    To train the slopes of a hybridized network, see :mod:`gluon_lprnet.train.fast_form`.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, groups: int = 1, in_channels: int = 0,
                 **kwargs: Any) -> None:
        super().__init__(channels, kernel, stride, groups, in_channels, activation=None, **kwargs)
        with self.name_scope():
            self.add(nn.PReLU(in_channels=channels))


class Pyramid(HybridBlock):
    """The extremely efficient spatial pyramid (its Figure 1c): reduce, split, transform, merge.

    Dilated depthwise convolutions look at the same few channels, and the sum of each branch is added to the next one
    (hierarchical feature fusion).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, limit: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        hidden = channels // BRANCHES
        with self.name_scope():
            self.reduce = ConvBNPReLU(hidden, 1, groups=BRANCHES, in_channels=in_channels)
            self.branches = nn.HybridSequential()
            for dilation in _dilations(limit):
                self.branches.add(nn.Conv2D(hidden, 3, stride, dilation, dilation, groups=hidden, use_bias=False,
                                            in_channels=hidden))
            self.merge = nn.HybridSequential()
            self.merge.add(nn.BatchNorm(in_channels=channels), nn.PReLU(in_channels=channels),
                           ConvBNReLU(channels, 1, groups=BRANCHES, in_channels=channels, activation=None))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        reduced = self.reduce(x)
        fused: list[Any] = []
        for branch in self.branches:
            y = branch(reduced)
            fused.append(y + fused[-1] if fused else y)
        return self.merge(F.concat(*fused, dim=1))


class EESP(HybridBlock):
    """The unit of stride 1: the input plus its pyramid, activated."""

    def __init__(self, channels: int, limit: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.pyramid = Pyramid(channels, channels, 1, limit)
            self.activation = nn.PReLU(in_channels=channels)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.activation(x + self.pyramid(x))


class StridedEESP(HybridBlock):
    """The down-sampling unit with the input's reinforcement (its Figure 2).

    The pooled features and a strided pyramid are concatenated; two convolutions of the image at that size are added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, limit: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.pool = nn.AvgPool2D(3, stride, 1)
            self.pyramid = Pyramid(in_channels, channels - in_channels, stride, limit)
            self.reinforcement = nn.HybridSequential()
            self.reinforcement.add(ConvBNPReLU(IMAGE_CHANNELS, 3, in_channels=IMAGE_CHANNELS),
                                   ConvBNReLU(channels, 1, in_channels=IMAGE_CHANNELS, activation=None))
            self.activation = nn.PReLU(in_channels=channels)

    def hybrid_forward(self, F: Any, x: Any, image: Any) -> Any:
        y = F.concat(self.pool(x), self.pyramid(x), dim=1)
        return self.activation(y + self.reinforcement(image))


class Stages(HybridBlock):
    """The stem and all stages; the image is pooled along with the features."""

    def __init__(self, width: float, small_image: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        base = math.ceil(int(STEM_CHANNELS * width) / BRANCHES) * BRANCHES
        stem_channels = in_channels = min(STEM_CHANNELS, base)
        stem_stride, *strides = (1, 1, 2, 2, 2) if small_image else (2, 2, 2, 2, 2)
        with self.name_scope():
            self.stem = ConvBNPReLU(stem_channels, 3, stem_stride, in_channels=IMAGE_CHANNELS)
            self.pools, self.first_units, self.units = (nn.HybridSequential() for _ in range(3))
            self.pools.add(nn.AvgPool2D(3, stem_stride, 1))
            for row, stride in zip(LAYOUT, strides):
                channels = base * row.channels // STEM_CHANNELS
                self.pools.add(nn.AvgPool2D(3, stride, 1))
                self.first_units.add(StridedEESP(in_channels, channels, stride, row.first_limit))
                units = nn.HybridSequential()
                for _ in range(1, row.units):
                    units.add(EESP(channels, row.limit))
                self.units.add(units)
                in_channels = channels
        self.out_channels = in_channels

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        first_pool, *pools = self.pools
        image = first_pool(x)
        x = self.stem(x)
        for pool, first_unit, units in zip(pools, self.first_units, self.units):
            image = pool(image)
            x = units(first_unit(x, image))
        return x


class ESPNetv2(Network):

    def __init__(self, width: float, classes: int, small_image: bool) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            stages = Stages(width, small_image)
            channels, last_channels = stages.out_channels, _last_channels(width)
            self.features.add(stages, ConvBNPReLU(channels, 3, groups=channels, in_channels=channels),
                              ConvBNPReLU(last_channels, 1, groups=BRANCHES, in_channels=channels),
                              nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=last_channels)


@register(widths=(1.0, 1.25, 1.5, 2.0))
def espnetv2(width: float = 1.0, classes: int = 1000, small_image: bool = False) -> ESPNetv2:
    return ESPNetv2(width, classes, small_image)
