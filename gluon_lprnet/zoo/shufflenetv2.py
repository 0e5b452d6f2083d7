"""ShuffleNetV2 (arXiv 1807.11164, its Table 5), and LPRNet-ShuffleNetV2 (the paper's "Implementations")."""
from typing import Callable, Optional, Union

from mxnet.gluon import HybridBlock, nn

from ..blocks import LPR, ConvBNReLU, ShuffleNetV2DownUnit, ShuffleNetV2Unit
from .network import Network
from .registry import register

STEM_CHANNELS = 24
# Each stage: one down-sampling unit, then this many stride-1 units (LPR in LPRNet-ShuffleNetV2).
STRIDE_1_UNITS = (3, 7, 3)
CHANNELS = {
    # width: three stages, last convolution
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


class ShuffleNetV2(Network):
    """The layout, with ``unit`` as the stride-1 unit over all channels of its stage."""

    def __init__(self, unit: Callable[[int], HybridBlock], width: float, classes: int, small_image: bool) -> None:
        super().__init__()
        *stage_channels, last_channels = CHANNELS[width]
        with self.name_scope():
            self.features = nn.HybridSequential()
            self.features.add(ConvBNReLU(STEM_CHANNELS, 3, 1 if small_image else 2, in_channels=3))
            if not small_image:
                self.features.add(nn.MaxPool2D(3, 2, 1))
            in_channels = STEM_CHANNELS
            for channels, repeats in zip(stage_channels, STRIDE_1_UNITS):
                self.features.add(ShuffleNetV2DownUnit(in_channels, channels))
                for _ in range(repeats):
                    self.features.add(unit(channels))
                in_channels = channels
            self.features.add(ConvBNReLU(last_channels, 1, in_channels=in_channels),
                              nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=last_channels)


@register(widths=tuple(CHANNELS))
def shufflenetv2(width: float = 1.0, classes: int = 1000, small_image: bool = False) -> ShuffleNetV2:
    return ShuffleNetV2(ShuffleNetV2Unit, width, classes, small_image)


@register(widths=tuple(CHANNELS))
def lprnet_shufflenetv2(width: float = 1.0, classes: int = 1000, small_image: bool = False,
                        rank: Union[int, float] = 1 / 8, residual: bool = True, l2_norm: bool = True,
                        l2_norm_scale: Optional[str] = None) -> ShuffleNetV2:
    return ShuffleNetV2(lambda channels: LPR(channels, rank, residual, l2_norm, l2_norm_scale), width, classes,
                        small_image)
