"""ShiftResNet-20 (Wu and others, "Shift", arXiv 1711.08141): ResNet-20 with shifts in place of its 3x3 convolutions.

It is a network for images of 32x32, so that ``small_image`` changes nothing. Its width multiplier is the paper's
expansion: the channels that are shifted over those that a module puts out.
"""
from collections import namedtuple
from collections.abc import Sequence
from typing import Optional

from mxnet.gluon import nn

from ..blocks import ConvBNReLU, ShiftResidual
from .network import Network
from .registry import register

Row = namedtuple('Row', 'channels blocks stride')

STEM_CHANNELS = 16
LAYOUT = (
    Row(16, 3, 1),
    Row(32, 3, 2),
    Row(64, 3, 2),
)


class ShiftResNet20(Network):
    """With ``directions`` the shifted channels of each module are those (see :class:`gluon_lprnet.blocks.Shift`)."""

    def __init__(self, expansion: float, classes: int, directions: Optional[Sequence[Sequence[int]]] = None) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            in_channels, pruned = STEM_CHANNELS, iter(directions or ())
            self.features.add(ConvBNReLU(in_channels, 3, in_channels=3))
            for row in LAYOUT:
                for block in range(row.blocks):
                    self.features.add(ShiftResidual(in_channels, row.channels, 1 if block else row.stride, expansion,
                                                    next(pruned, None)))
                    in_channels = row.channels
            self.features.add(nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=in_channels)


@register(widths=(1.0, 3.0, 6.0, 9.0), any_width=True)
def shiftresnet20(width: float = 1.0, classes: int = 1000, small_image: bool = True) -> ShiftResNet20:
    return ShiftResNet20(width, classes)
