"""ShuffleNetV1 with 3 groups (arXiv 1707.01083, its Table 1)."""
from collections import namedtuple

from mxnet.gluon import nn

from ..blocks import ConvBNReLU, ShuffleNetV1Unit
from .network import Network
from .registry import register
from .scaling import scale_channels

Row = namedtuple('Row', 'channels repeats')

GROUPS = 3
STEM_CHANNELS = 24
LAYOUT = (
    # The first unit of a stage is the down-sampling one.
    Row(240, 4),
    Row(480, 8),
    Row(960, 4),
)


class ShuffleNetV1(Network):

    def __init__(self, width: float, classes: int, small_image: bool) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            in_channels = scale_channels(STEM_CHANNELS, width)
            self.features.add(ConvBNReLU(in_channels, 3, 1 if small_image else 2, in_channels=3))
            if not small_image:
                self.features.add(nn.MaxPool2D(3, 2, 1))
            for stage, row in enumerate(LAYOUT):
                channels = scale_channels(row.channels, width)
                for repeat in range(row.repeats):
                    self.features.add(ShuffleNetV1Unit(in_channels, channels, 2 if repeat == 0 else 1, GROUPS,
                                                       first_groups=1 if stage == repeat == 0 else GROUPS))
                    in_channels = channels
            self.features.add(nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=in_channels)


@register(widths=(0.25, 0.5, 1.0, 1.5, 2.0))
def shufflenetv1(width: float = 1.0, classes: int = 1000, small_image: bool = False) -> ShuffleNetV1:
    return ShuffleNetV1(width, classes, small_image)
