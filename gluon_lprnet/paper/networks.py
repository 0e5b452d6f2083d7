"""The networks of Table 4, and variants of LPRNet-MobileNet for what the paper leaves open.

Each ``lprnet_with_...`` is LPRNet-MobileNet with one thing changed in all its modules. They are not part of the zoo:
:func:`gluon_lprnet.get_model` knows their names only where this module has been imported.
"""
from typing import Any, Callable, Optional, Union

import mxnet as mx
from mxnet.gluon import HybridBlock, nn

from ..blocks import LPR, SConv
from ..zoo.mobilenetv1 import MobileNetV1
from ..zoo.registry import register

# Four of the five modules of width 512: this gives Table 4's 11M, 3.1M and 2.4M parameters.
TABLE_4_PLACES = range(2, 6)


@register(widths=(), any_width=True)
def table4_sconv(width: float = 1.0, classes: int = 10, small_image: bool = False) -> MobileNetV1:
    return MobileNetV1(lambda channels: SConv(channels, channels), width, classes, small_image, TABLE_4_PLACES)


@register(widths=(), any_width=True)
def table4_lpr(width: float = 1.0, classes: int = 10, small_image: bool = False, rank: Union[int, float] = 1 / 8,
               residual: bool = True, l2_norm: bool = True,
               l2_norm_scale: Optional[str] = None) -> MobileNetV1:
    return MobileNetV1(lambda channels: LPR(channels, rank, residual, l2_norm, l2_norm_scale), width, classes,
                       small_image, TABLE_4_PLACES)


class DepthwiseReLU(LPR):
    """``d = ReLU(BN(D x))``, and ReLU after the sum as before."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        with self.depthwise.name_scope():
            self.depthwise.add(nn.Activation('relu'))


class DepthwiseReLUAlone(DepthwiseReLU):
    """``d = ReLU(BN(D x))``, and no ReLU after the sum."""

    def _output(self, F: Any, y: Any, d: Any) -> Any:
        return y + d


class BatchNormAfterL2Norm(LPR):
    """``ReLU(BN(L2norm(P2 P1 d)) + d)``."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        with self.name_scope():
            self.batch_norm = nn.BatchNorm(in_channels=channels)

    def _output(self, F: Any, y: Any, d: Any) -> Any:
        return super()._output(F, self.batch_norm(y), d)


class BatchNormForL2Norm(BatchNormAfterL2Norm):
    """``ReLU(BN(P2 P1 d) + d)``."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, l2_norm=False, **kwargs)


class SpatialL2Norm(LPR):
    """``ReLU(L2norm(P2 P1 d) + d)`` with each channel normalized over its positions."""

    MODE = 'spatial'

    def __init__(self, channels: int, **kwargs: Any) -> None:
        # Without that over the channels of each position.
        super().__init__(channels, l2_norm=False, **kwargs)

    def _output(self, F: Any, y: Any, d: Any) -> Any:
        return super()._output(F, F.L2Normalization(y, mode=self.MODE, eps=self.EPSILON), d)


class InstanceL2Norm(SpatialL2Norm):
    """The same with all channels and positions of an image normalized together."""

    MODE = 'instance'


class SmallDepthwiseScale(LPR):
    """The scale of BN(D x) starts at 1 / sqrt(m): its mean square is then 1 / m, as that of the normalized channels."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        self.depthwise[1].gamma.init = mx.init.Constant(channels ** -0.5)


class OrthogonalInit(LPR):
    """P1 starts with orthonormal rows, P2 with orthonormal columns."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        for convolution in (self.p1, self.p2):
            convolution.weight.init = mx.init.Orthogonal(scale=1.0)


class SmallInit(LPR):
    """P1 and P2 start small: the norm removes their scale, so the same learning rate turns them faster."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        for convolution in (self.p1, self.p2):
            convolution.weight.init = mx.init.Normal(0.01)


class NoDecay(LPR):
    """No weight decay on P1 and P2."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, **kwargs)
        for convolution in (self.p1, self.p2):
            convolution.weight.wd_mult = 0.0


def _register_choice(name: str, module: Callable[[int], HybridBlock]) -> None:
    def build(width: float = 1.0, classes: int = 1000, small_image: bool = False) -> MobileNetV1:
        return MobileNetV1(module, width, classes, small_image)
    build.__name__ = name
    register(widths=(), any_width=True)(build)


for _name, _module in {
        'lprnet_with_depthwise_relu': DepthwiseReLU,
        'lprnet_with_depthwise_relu_alone': DepthwiseReLUAlone,
        'lprnet_with_batch_norm_after_l2_norm': BatchNormAfterL2Norm,
        'lprnet_with_batch_norm_for_l2_norm': BatchNormForL2Norm,
        'lprnet_with_spatial_l2_norm': SpatialL2Norm,
        'lprnet_with_instance_l2_norm': InstanceL2Norm,
        'lprnet_with_small_depthwise_scale': SmallDepthwiseScale,
        'lprnet_with_orthogonal_init': OrthogonalInit,
        'lprnet_with_small_init': SmallInit,
        'lprnet_without_decay_of_p': NoDecay}.items():
    _register_choice(_name, _module)
