"""DenseNet-40 of growth 12, without bottlenecks and compression (arXiv 1608.06993, its section 3 and Table 2).

It is a network for images of 32x32, so that ``small_image`` changes nothing.
"""
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..blocks import concat_channels
from .network import Network
from .registry import register

# Between the rows a transition: a 1x1 convolution and 2x2 average pooling.
Row = namedtuple('Row', 'layers growth')

STEM_CHANNELS = 16
LAYOUT = (
    Row(12, 12),
    Row(12, 12),
    Row(12, 12),
)


# From channels of input and output to a bias-free convolution that keeps the size.
Convolution = Callable[[int, int], HybridBlock]


def pointwise(in_channels: int, channels: int) -> nn.Conv2D:
    return nn.Conv2D(channels, 1, use_bias=False, in_channels=in_channels)


def square(in_channels: int, channels: int) -> nn.Conv2D:
    return nn.Conv2D(channels, 3, 1, 1, use_bias=False, in_channels=in_channels)


class BNReLUConv(nn.HybridSequential):
    """Batch normalization, ReLU, a convolution."""

    def __init__(self, in_channels: int, channels: int, convolution: Convolution, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.add(nn.BatchNorm(in_channels=in_channels), nn.Activation('relu'), convolution(in_channels, channels))


class DenseLayer(HybridBlock):
    """What it makes of its input is put behind the input."""

    def __init__(self, in_channels: int, growth: int, convolution: Convolution = square, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.body = BNReLUConv(in_channels, growth, convolution)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return concat_channels(F, x, self.body(x))


class DenseNet40(Network):
    """``convolutions``: those of the layers in each of the three blocks."""

    def __init__(self, classes: int, convolutions: Sequence[Convolution] = (square,) * len(LAYOUT)) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            channels = STEM_CHANNELS
            self.features.add(square(3, channels))
            for number, (row, convolution) in enumerate(zip(LAYOUT, convolutions)):
                if number:
                    self.features.add(BNReLUConv(channels, channels, pointwise), nn.AvgPool2D(2))
                for _ in range(row.layers):
                    self.features.add(DenseLayer(channels, row.growth, convolution))
                    channels += row.growth
            self.features.add(nn.BatchNorm(in_channels=channels), nn.Activation('relu'), nn.GlobalAvgPool2D(),
                              nn.Flatten())
            self.output = nn.Dense(classes, in_units=channels)


@register(widths=(1.0,))
def densenet40(width: float = 1.0, classes: int = 1000, small_image: bool = True) -> DenseNet40:
    return DenseNet40(classes)
