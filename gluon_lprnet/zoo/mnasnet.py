"""MnasNet-A1 (arXiv 1807.11626, its Figure 7a)."""
from collections import namedtuple
from typing import Any

from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..blocks import ConvBNReLU
from .network import Network
from .registry import register
from .scaling import scale_channels, without_first_down_sampling

Row = namedtuple('Row', 'expansion kernel channels repeats stride squeeze')

STEM_CHANNELS = 32
LAYOUT = (
    Row(1, 3, 16, 1, 1, False),
    Row(6, 3, 24, 2, 2, False),
    Row(3, 5, 40, 3, 2, True),
    Row(6, 3, 80, 4, 2, False),
    Row(6, 3, 112, 2, 1, True),
    Row(6, 5, 160, 3, 2, True),
    Row(6, 3, 320, 1, 1, False),
)
# Not in the figure, which ends with "Pooling, FC"; in the network that its authors released, and in the printed 3.9M.
LAST_CHANNELS = 1280
SQUEEZE_DENOMINATOR = 4
CHANNEL_DIVISOR = 8


class SqueezeExcitation(HybridBlock):
    """Channels weighted by a function of all channels' means (arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.body = nn.HybridSequential()
            self.body.add(nn.GlobalAvgPool2D(), nn.Conv2D(hidden, 1, in_channels=channels),
                          nn.Activation('relu'), nn.Conv2D(channels, 1, in_channels=hidden), nn.Activation('sigmoid'))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.broadcast_mul(x, self.body(x))


class MBConv(HybridBlock):
    """MnasNet's module (its Figure 7b to d): MobileNetV2's with ReLU, kernels of 5x5 and squeeze-and-excitation.

    ``squeeze`` is a quarter of the input's channels. At expansion 1 there is no expanding convolution (SepConv).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int, kernel: int, squeeze: bool,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shortcut = stride == 1 and in_channels == channels
        hidden = in_channels * expansion
        with self.name_scope():
            self.body = nn.HybridSequential()
            if expansion != 1:
                self.body.add(ConvBNReLU(hidden, 1, in_channels=in_channels))
            self.body.add(ConvBNReLU(hidden, kernel, stride, groups=hidden, in_channels=hidden))
            if squeeze:
                self.body.add(SqueezeExcitation(hidden, in_channels // SQUEEZE_DENOMINATOR))
            self.body.add(ConvBNReLU(channels, 1, in_channels=hidden, activation=None))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.body(x)
        return x + y if self._shortcut else y


class MnasNet(Network):

    def __init__(self, width: float, classes: int, small_image: bool) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            in_channels = scale_channels(STEM_CHANNELS, width, CHANNEL_DIVISOR)
            self.features.add(ConvBNReLU(in_channels, 3, 1 if small_image else 2, in_channels=3))
            for row in without_first_down_sampling(LAYOUT) if small_image else LAYOUT:
                channels = scale_channels(row.channels, width, CHANNEL_DIVISOR)
                for repeat in range(row.repeats):
                    self.features.add(MBConv(in_channels, channels, row.stride if repeat == 0 else 1, row.expansion,
                                             row.kernel, row.squeeze))
                    in_channels = channels
            last_channels = scale_channels(LAST_CHANNELS, max(1.0, width), CHANNEL_DIVISOR)
            self.features.add(ConvBNReLU(last_channels, 1, in_channels=in_channels),
                              nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=last_channels)


@register(widths=(0.5, 1.0), any_width=True)
def mnasnet(width: float = 1.0, classes: int = 1000, small_image: bool = False) -> MnasNet:
    return MnasNet(width, classes, small_image)
