"""MobileNetV1 (arXiv 1704.04861, its Table 1), and LPRNet-MobileNet (the paper's "Implementations")."""
import itertools
from collections import namedtuple
from collections.abc import Collection
from typing import Any, Callable, Optional, Union

from mxnet.gluon import HybridBlock, nn
from mxnet.initializer import Constant

from ..blocks import DSC, LPR, ConvBNReLU
from .network import Network
from .registry import register
from .scaling import scale_channels, without_first_down_sampling

Row = namedtuple('Row', 'channels stride repeats')

STEM_CHANNELS = 32
LAYOUT = (
    Row(64, 1, 1),
    Row(128, 2, 1),
    Row(128, 1, 1),    # LPR in LPRNet-MobileNet
    Row(256, 2, 1),
    Row(256, 1, 1),    # LPR
    Row(512, 2, 1),
    Row(512, 1, 5),    # LPR
    Row(1024, 2, 1),
    Row(1024, 1, 1),   # LPR
)
# Modules that LPR can stand for.
PLACES = 8


class MobileNetV1(Network):
    """The layout, with ``module`` where the stride is 1 and input and output are equally wide, and DSC elsewhere.

    ``places`` limits this to some of those modules, numbered from 0 to 7. ``form`` are keywords of
    :class:`gluon_lprnet.blocks.ConvBNReLU` for the other modules and the first convolution: ``activation``, ``padding``
    and ``batch_norm``. ``global_depthwise`` is the side of the last feature map, over all of which a depthwise
    convolution goes in place of the average pooling, with which it begins (MobileFaceNet, arXiv 1804.07573, 3.1): where
    a landmark is depends on where a channel sees it.
    """

    def __init__(self, module: Callable[[int], HybridBlock], width: float, classes: int, small_image: bool,
                 places: Collection[int] = range(PLACES), global_depthwise: Optional[int] = None, **form: Any) -> None:
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            in_channels = scale_channels(STEM_CHANNELS, width)
            self.features.add(ConvBNReLU(in_channels, 3, 1 if small_image else 2, in_channels=3, **form))
            place = itertools.count()
            for row in without_first_down_sampling(LAYOUT) if small_image else LAYOUT:
                channels = scale_channels(row.channels, width)
                for _ in range(row.repeats):
                    if row.stride == 1 and in_channels == channels and next(place) in places:
                        self.features.add(module(channels))
                    else:
                        self.features.add(DSC(in_channels, channels, row.stride, **form))
                    in_channels = channels
            self.features.add(nn.Conv2D(in_channels, global_depthwise, groups=in_channels, use_bias=False,
                                        in_channels=in_channels, weight_initializer=Constant(global_depthwise ** -2))
                              if global_depthwise else nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=in_channels)


@register(widths=(0.25, 0.5, 0.75, 1.0), any_width=True)
def mobilenetv1(width: float = 1.0, classes: int = 1000, small_image: bool = False, activation: str = 'relu',
                padding: str = 'symmetric', global_depthwise: Optional[int] = None) -> MobileNetV1:
    return MobileNetV1(lambda channels: DSC(channels, channels, activation=activation), width, classes, small_image,
                       global_depthwise=global_depthwise, activation=activation, padding=padding)


@register(widths=(0.25, 0.5, 0.75, 1.0, 1.25, 1.5), any_width=True, rank_denominators=(4, 16))
def lprnet_mobilenet(width: float = 1.0, classes: int = 1000, small_image: bool = False,
                     rank: Union[int, float] = 1 / 8, residual: bool = True, l2_norm: bool = True,
                     l2_norm_scale: Optional[str] = None, global_depthwise: Optional[int] = None) -> MobileNetV1:
    return MobileNetV1(lambda channels: LPR(channels, rank, residual, l2_norm, l2_norm_scale), width, classes,
                       small_image, global_depthwise=global_depthwise)
