"""MobileNetV1 as :func:`gluon_lprnet.compress` leaves it: pointwise convolutions of equal width as low-rank modules."""
from collections.abc import Sequence
from typing import Any, Optional, Union

from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..blocks import activation_of, depthwise, resolve_rank
from ..utils.errors import InputError
from .mobilenetv1 import PLACES, MobileNetV1
from .registry import register


class LowRank(HybridBlock):
    """A depthwise 3x3 convolution and, in place of a pointwise one, ``P2 P1 d + s * d + b``.

    Parameters
    ----------
    channels : int
        Width m, of input and output.
    rank : int or float
        See :func:`gluon_lprnet.blocks.resolve_rank`.
    residual : bool
        False: ``P2 P1 d + b``.
    activation : str
        After D and after the sum.
    batch_norm : bool
        Of D; without it, D has a bias.
    """

    def __init__(self, channels: int, rank: Union[int, float], residual: bool, activation: str, batch_norm: bool,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        rank = resolve_rank(rank, channels)
        with self.name_scope():
            self.depthwise = depthwise(channels, activation=activation, batch_norm=batch_norm)
            self.p1 = nn.Conv2D(rank, 1, use_bias=False, in_channels=channels)
            self.p2 = nn.Conv2D(channels, 1, use_bias=not residual, in_channels=rank)
            self.residual = nn.Conv2D(channels, 1, groups=channels, in_channels=channels) if residual else None
            self.activation = activation_of(activation)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        d = self.depthwise(x)
        y = self.p2(self.p1(d))
        return self.activation(y + self.residual(d) if self.residual else y)


# None of them is built without ranks, which are those of a trained network.
@register(widths=(), any_width=True)
def compressed_mobilenet(width: float = 1.0, classes: int = 1000, small_image: bool = False,
                         ranks: Sequence[Optional[Union[int, float]]] = (), residual: bool = True,
                         activation: str = 'relu', padding: str = 'symmetric',
                         batch_norm: bool = True) -> MobileNetV1:
    if len(ranks) != PLACES:
        raise InputError(f'ranks {ranks!r}: give {PLACES}, one for each pointwise convolution of equal width, and None '
                         'where it stays as it is.')
    form: dict[str, Any] = dict(activation=activation, batch_norm=batch_norm)
    left = iter([rank for rank in ranks if rank is not None])
    return MobileNetV1(lambda channels: LowRank(channels, next(left), residual, **form), width, classes, small_image,
                       [place for place, rank in enumerate(ranks) if rank is not None], padding=padding, **form)
