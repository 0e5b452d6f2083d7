"""MobileNetV2 (arXiv 1801.04381, its Table 2)."""
from collections import namedtuple

from mxnet.gluon import nn

from ..blocks import ConvBNReLU, InvertedResidual
from .network import Network
from .registry import register
from .scaling import scale_channels, without_first_down_sampling

Row = namedtuple('Row', 'expansion channels repeats stride')

STEM_CHANNELS = 32
LAYOUT = (
    Row(1, 16, 1, 1),
    Row(6, 24, 2, 2),
    Row(6, 32, 3, 2),
    Row(6, 64, 4, 2),
    Row(6, 96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)
LAST_CHANNELS = 1280
CHANNEL_DIVISOR = 8


class MobileNetV2(Network):

    def __init__(self, width: float, classes: int, small_image: bool) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            in_channels = scale_channels(STEM_CHANNELS, width, CHANNEL_DIVISOR)
            self.features.add(ConvBNReLU(in_channels, 3, 1 if small_image else 2, in_channels=3,
                                         activation='relu6'))
            for row in without_first_down_sampling(LAYOUT) if small_image else LAYOUT:
                channels = scale_channels(row.channels, width, CHANNEL_DIVISOR)
                for repeat in range(row.repeats):
                    self.features.add(InvertedResidual(in_channels, channels,
                                                       row.stride if repeat == 0 else 1, row.expansion))
                    in_channels = channels
            # The last layer is widened with the network but never narrowed (section 4 of its paper).
            last_channels = scale_channels(LAST_CHANNELS, max(1.0, width), CHANNEL_DIVISOR)
            self.features.add(ConvBNReLU(last_channels, 1, in_channels=in_channels, activation='relu6'),
                              nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=last_channels)


@register(widths=(0.5, 1.0, 1.4), any_width=True)
def mobilenetv2(width: float = 1.0, classes: int = 1000, small_image: bool = False) -> MobileNetV2:
    return MobileNetV2(width, classes, small_image)
