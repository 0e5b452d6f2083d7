"""IGCV3-D: interleaved low-rank group convolutions (arXiv 1806.00178, its Table 3 and section 3)."""
from collections import namedtuple
from typing import Any

from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..blocks import ConvBNReLU, channel_shuffle, depthwise
from .network import Network
from .registry import register
from .scaling import scale_channels, without_first_down_sampling

Row = namedtuple('Row', 'expansion channels repeats stride')

GROUPS = 2
STEM_CHANNELS = 32
# MobileNetV2's stages with more units: at two groups, a unit has half of the pointwise weights.
LAYOUT = (
    Row(1, 16, 1, 1),
    Row(6, 24, 4, 2),
    Row(6, 32, 6, 2),
    Row(6, 64, 8, 2),
    Row(6, 96, 6, 1),
    Row(6, 160, 6, 2),
    Row(6, 320, 1, 1),
)
LAST_CHANNELS = 1280


class InterleavedResidual(HybridBlock):
    """IGCV3's module: grouped expansion, shuffle, depthwise 3x3, grouped projection.

    Only the depthwise convolution is followed by an activation. The input is added where the shapes permit it.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int, groups: int = GROUPS,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._groups = groups
        self._shortcut = stride == 1 and in_channels == channels
        hidden = in_channels * expansion
        with self.name_scope():
            self.expand = ConvBNReLU(hidden, 1, groups=groups, in_channels=in_channels, activation=None)
            self.depthwise = depthwise(hidden, stride, activation='relu6')
            self.project = ConvBNReLU(channels, 1, groups=groups, in_channels=hidden, activation=None)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.project(self.depthwise(channel_shuffle(F, self.expand(x), self._groups)))
        return x + y if self._shortcut else y


class IGCV3(Network):

    def __init__(self, width: float, classes: int, small_image: bool) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            in_channels = _even(STEM_CHANNELS, width)
            self.features.add(ConvBNReLU(in_channels, 3, 1 if small_image else 2, in_channels=3,
                                         activation='relu6'))
            for row in without_first_down_sampling(LAYOUT) if small_image else LAYOUT:
                channels = _even(row.channels, width)
                for repeat in range(row.repeats):
                    self.features.add(InterleavedResidual(in_channels, channels, row.stride if repeat == 0 else 1,
                                                          row.expansion))
                    in_channels = channels
            # Never narrowed, as in MobileNetV2.
            last_channels = _even(LAST_CHANNELS, max(1.0, width))
            self.features.add(ConvBNReLU(last_channels, 1, in_channels=in_channels, activation='relu6'),
                              nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=last_channels)


def _even(channels: int, width: float) -> int:
    """The scaled channels, rounded up to fill the two groups."""
    scaled = scale_channels(channels, width)
    return scaled + scaled % GROUPS


@register(widths=(0.5, 0.75, 1.0), any_width=True)
def igcv3(width: float = 1.0, classes: int = 1000, small_image: bool = False) -> IGCV3:
    return IGCV3(width, classes, small_image)
