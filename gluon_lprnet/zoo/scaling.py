"""Shared by the layouts of several families: width multipliers, and strides for small images."""
from ..utils.errors import InputError


def scale_channels(channels: int, width: float, divisor: int = 1) -> int:
    """``channels`` times the multiplier ``width``, as an int.

    Rounded down for ``divisor=1`` (MobileNetV1); otherwise to the nearest multiple of ``divisor`` that is
    not over 10% below, as MobileNetV2's authors do with 8.

    Raises
    ------
    InputError
        If no channels are left.
    """
    scaled = channels * width
    if divisor == 1:
        rounded = int(scaled)
    else:
        rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
        if rounded < 0.9 * scaled:
            rounded += divisor
    if rounded < 1:
        raise InputError(f'width x{width} leaves no channels in a layer of {channels}: choose a larger width.')
    return rounded


def without_first_down_sampling(layout: tuple) -> tuple:
    """The rows of ``layout`` (named tuples with a ``stride``) with the first stride of 2 made 1."""
    first = next(index for index, row in enumerate(layout) if row.stride == 2)
    return layout[:first] + (layout[first]._replace(stride=1),) + layout[first + 1:]
