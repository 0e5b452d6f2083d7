"""CondenseNet with learned group convolutions, C = G = 8 (arXiv 1711.09224, its section 3 and Table 1).

There are two forms. For training (``condensing=True``) the 1x1 convolutions are dense and masked:
:meth:`CondenseNet.condense`, called C - 1 times, removes a part of each group's inputs. :meth:`CondenseNet.converted`
then makes the same function of gathered channels and group convolutions: the form that is counted and deployed.
"""
from collections import namedtuple
from typing import Any, Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..blocks import channel_shuffle
from ..utils.errors import InputError
from .network import Network, copy_parameters, values_of
from .registry import register

Row = namedtuple('Row', 'units growth')

GROUPS = 8
# Of a group's inputs one in CONDENSATION is left.
CONDENSATION = 8
BOTTLENECK = 4
STEM_CHANNELS = 16
# 2x2 average pooling between the stages.
LAYOUT = (
    Row(4, 8),
    Row(6, 16),
    Row(8, 32),
    Row(10, 64),
    Row(8, 128),
)
# Of the pooled channels that the classifier reads.
CLASSIFIER_CONDENSATION = 2


class BNReLU(nn.HybridSequential):

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.add(nn.BatchNorm(in_channels=channels), nn.Activation('relu'))


class LearnedGroupConv(HybridBlock):
    """BatchNorm, ReLU and a 1x1 convolution whose groups choose their inputs while it is trained (section 3.1).

    Output j belongs to group j modulo the number of groups.
    """

    def __init__(self, in_channels: int, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._in_channels, self._channels = in_channels, channels
        with self.name_scope():
            self.activated = BNReLU(in_channels)
            self.weight = self.params.get('weight', shape=(channels, in_channels, 1, 1))
            self.mask = self.params.get('mask', shape=(channels, in_channels, 1, 1), init='ones', grad_req='null',
                                        differentiable=False)

    def hybrid_forward(self, F: Any, x: Any, weight: Any, mask: Any) -> Any:
        return F.Convolution(self.activated(x), weight * mask, kernel=(1, 1), num_filter=self._channels, no_bias=True)

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """An array (channels, in_channels, 1, 1) as (groups, channels / groups, in_channels)."""
        return values.reshape(-1, GROUPS, self._in_channels).swapaxes(0, 1)

    def kept(self) -> np.ndarray:
        """The inputs of each group, in ascending order, as (groups, number)."""
        mask = self.by_group(values_of(self.mask))[:, 0]
        return np.stack([np.flatnonzero(group) for group in mask])

    def condense(self) -> None:
        """Remove one in ``CONDENSATION`` of each group's inputs: those whose weights are smallest in their sum."""
        mask = self.by_group(values_of(self.mask)).copy()
        size = np.abs(self.by_group(values_of(self.weight))).sum(axis=1)
        size[mask[:, 0] == 0] = np.inf
        removed = np.argsort(size, axis=1, kind='stable')[:, :self._in_channels // CONDENSATION]
        np.put_along_axis(mask, removed[:, None], 0, axis=2)
        self.mask.set_data(mx.nd.array(mask.swapaxes(0, 1).reshape(self.mask.shape)))

    def group_lasso(self, context: mx.Context) -> mx.nd.NDArray:
        """The sum over groups and inputs of the norm of their weights (section 3.1), for the loss; a scalar."""
        weight = (self.weight.data(context) * self.mask.data(context)).reshape((-1, GROUPS, self._in_channels))
        # The slope of a root has no value at 0, where the masked ones are.
        return ((weight ** 2).sum(axis=0) + 1e-16).sqrt().sum()


class Gathered(HybridBlock):
    """The channels (of the second axis) at ``index``."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.index = self.params.get('index', shape=(size,), init='zeros', grad_req='null', differentiable=False)

    def hybrid_forward(self, F: Any, x: Any, index: Any) -> Any:
        return F.take(x, index, axis=1)

    def cast(self, dtype: str) -> None:
        """Leaves the index as it is: float16 has not all whole numbers above 2048."""


class IndexedGroupConv(nn.HybridSequential):
    """The form for inference: gathered inputs, BatchNorm, ReLU, a grouped 1x1 convolution, shuffle (Figure 4)."""

    def __init__(self, in_channels: int, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        gathered = in_channels // CONDENSATION * GROUPS
        with self.name_scope():
            self.add(Gathered(gathered), BNReLU(gathered),
                     nn.Conv2D(channels, 1, groups=GROUPS, use_bias=False, in_channels=gathered))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return channel_shuffle(F, super().hybrid_forward(F, x), GROUPS)


class KeptFeatures(HybridBlock):
    """In training: features times 1 or 0."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.mask = self.params.get('mask', shape=(1, channels), init='ones', grad_req='null',
                                        differentiable=False)

    def hybrid_forward(self, F: Any, x: Any, mask: Any) -> Any:
        return F.broadcast_mul(x, mask)


class DenseUnit(HybridBlock):
    """A 1x1 and a 3x3 group convolution, whose output is put beside the input."""

    def __init__(self, in_channels: int, growth: int, condensing: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        hidden = BOTTLENECK * growth
        with self.name_scope():
            self.pointwise = (LearnedGroupConv if condensing else IndexedGroupConv)(in_channels, hidden)
            self.spatial = nn.HybridSequential()
            self.spatial.add(BNReLU(hidden), nn.Conv2D(growth, 3, padding=1, groups=GROUPS, use_bias=False,
                                                       in_channels=hidden))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.concat(x, self.spatial(self.pointwise(x)), dim=1)


class CondenseNet(Network):

    def __init__(self, classes: int, small_image: bool, condensing: bool) -> None:
        super().__init__()
        self._small_image, self._condensing = small_image, condensing
        with self.name_scope():
            self.features = nn.HybridSequential()
            self.features.add(nn.Conv2D(STEM_CHANNELS, 3, 1 if small_image else 2, 1, use_bias=False, in_channels=3))
            channels = STEM_CHANNELS
            for stage, row in enumerate(LAYOUT):
                if stage > (1 if small_image else 0):
                    self.features.add(nn.AvgPool2D(2))
                for _ in range(row.units):
                    self.features.add(DenseUnit(channels, row.growth, condensing))
                    channels += row.growth
            self.features.add(BNReLU(channels), nn.GlobalAvgPool2D(), nn.Flatten())
            if not condensing:
                channels //= CLASSIFIER_CONDENSATION
            self.features.add((KeptFeatures if condensing else Gathered)(channels))
            self.output = nn.Dense(classes, in_units=channels)

    def _learned(self) -> list[LearnedGroupConv]:
        if not self._condensing:
            raise InputError('this CondenseNet is in its form for inference. To train one, build it with '
                             'condensing=True.')
        return [layer.pointwise for layer in self.features if isinstance(layer, DenseUnit)]

    # C - 1 of them.
    stages = CONDENSATION - 1

    @property
    def stages_left(self) -> int:
        """How often :meth:`condense` is still to be called, of ``stages`` times."""
        kept = self._learned()[0].kept().shape[1]
        return kept * CONDENSATION // STEM_CHANNELS - 1

    @property
    def chosen(self) -> bool:
        """Whether the last condensing stage is done, so that :meth:`converted` can be called."""
        return self.stages_left == 0

    def condense(self) -> None:
        """Go on to the next condensing stage (section 3.1): each group of each 1x1 convolution loses some inputs.

        The paper does so at equal distances in the first half of the training. With the last stage the classifier
        keeps those half of the features whose weights are largest.

        Raises
        ------
        InputError
            If all stages are done, or the network is in its form for inference.
        """
        if self.stages_left == 0:
            raise InputError(f'all {self.stages} condensing stages are done.')
        for layer in self._learned():
            layer.condense()
        if self.stages_left == 0:
            mask = self.features[-1].mask
            size = np.abs(values_of(self.output.weight)).sum(axis=0)
            kept = np.zeros(mask.shape, 'float32')
            kept[0, np.argsort(-size, kind='stable')[:size.size // CLASSIFIER_CONDENSATION]] = 1
            mask.set_data(mx.nd.array(kept))

    def group_lasso(self, context: Optional[mx.Context] = None) -> mx.nd.NDArray:
        """The regularizer of all learned group convolutions, a scalar; the paper adds 1e-5 times it to the loss.

        Of several devices that with the weights is ``context`` (default: the first).
        """
        context = context or self.output.weight.list_ctx()[0]
        return mx.nd.add_n(*[layer.group_lasso(context) for layer in self._learned()])

    def converted(self) -> 'CondenseNet':
        """The same function in the form for inference, as a new network on the CPU.

        Raises
        ------
        InputError
            If condensing stages are left, or the network is in its form for inference.
        """
        if self.stages_left:
            raise InputError(f'{self.stages_left} condensing stages are left: the group convolutions cannot hold the '
                             'weights yet.')
        net = CondenseNet(self.output.weight.shape[0], self._small_image, condensing=False)
        net.initialize()
        for ours, theirs in zip(self.features, net.features):
            if isinstance(ours, DenseUnit):
                _convert(ours.pointwise, theirs.pointwise)
                copy_parameters(ours.spatial, theirs.spatial)
            elif not isinstance(ours, KeptFeatures):
                copy_parameters(ours, theirs)
        index = np.flatnonzero(values_of(self.features[-1].mask)[0])
        net.features[-1].index.set_data(mx.nd.array(index))
        net.output.weight.set_data(mx.nd.array(values_of(self.output.weight)[:, index]))
        net.output.bias.set_data(mx.nd.array(values_of(self.output.bias)))
        return net


def _convert(learned: LearnedGroupConv, indexed: IndexedGroupConv) -> None:
    gathered, activated, convolution = indexed
    kept = learned.kept()
    grouped = np.take_along_axis(learned.by_group(values_of(learned.weight)), kept[:, None], axis=2)
    convolution.weight.set_data(mx.nd.array(grouped.reshape(convolution.weight.shape)))
    index = mx.nd.array(kept.reshape(-1))
    gathered.index.set_data(index)
    for ours, theirs in zip(learned.activated.collect_params().values(), activated.collect_params().values()):
        theirs.set_data(mx.nd.take(mx.nd.array(values_of(ours)), index))


@register(widths=(1.0,))
def condensenet(width: float = 1.0, classes: int = 1000, small_image: bool = False,
                condensing: bool = False) -> CondenseNet:
    return CondenseNet(classes, small_image, condensing)
