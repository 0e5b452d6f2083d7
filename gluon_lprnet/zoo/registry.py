"""The names of the networks: ``get_model(name, **kwargs)`` and ``list_models()``."""
import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional, Union

import mxnet as mx
from mxnet.gluon.block import HybridBlock

from ..utils.errors import InputError
from .pretrained import Card, cards, find_card, split_tag


class Family(NamedTuple):
    """What :func:`register` was given, with the function that builds a network."""

    build: Callable[..., HybridBlock]
    widths: tuple[float, ...]
    any_width: bool
    rank_denominators: tuple[int, ...]


_FAMILIES: dict[str, Family] = {}
# Families that became a keyword of another one; runs and exports still name them.
_FORMER = {
    'lprnet_with_learned_scale': ('lprnet_mobilenet', {'l2_norm_scale': 'one'}),
    'lprnet_with_learned_scale_of_width': ('lprnet_mobilenet', {'l2_norm_scale': 'sqrt_width'}),
}
_NAME = re.compile(r'(?P<family>[a-z]\w*?)(_x(?P<width>\d+(\.\d+)?))?(_r(?P<denominator>\d+))?')


def register(widths: Sequence[float], any_width: bool = False,
             rank_denominators: Sequence[int] = ()) -> Callable[[Callable], Callable]:
    """Class decorator that registers a family of networks under its class or function name in lower case.

    Parameters
    ----------
    widths : sequence of float
        The widths listed by :func:`list_models`; none for a family of an experiment, which is not part of the zoo.
    any_width : bool
        Whether other widths can be built as well.
    rank_denominators : sequence of int
        The ranks m/4, m/16, ... that are listed in addition to the default of an LPR network.
    """
    def add(build: Callable[..., HybridBlock]) -> Callable[..., HybridBlock]:
        _FAMILIES[build.__name__.lower()] = Family(build, tuple(widths), any_width, tuple(rank_denominators))
        return build
    return add


def list_models(pretrained: bool = False) -> list[str]:
    """Names of the networks, family by family in the order of registration.

    ``_x`` is the width multiplier; ``_r4`` is the rank r = m/4 of an LPR network (r = m/8 unless named).

    Parameters
    ----------
    pretrained : bool
        Only those whose trained weights come with the package, with the data set behind the name:
        ``lprnet_mobilenet_x0.5.cifar10``.
    """
    if pretrained:
        return [card.name for card in cards()]
    names = []
    for name, family in _FAMILIES.items():
        names += [f'{name}_x{width}' for width in family.widths]
        names += [f'{name}_x1.0_r{denominator}' for denominator in family.rank_denominators]
    return names


def get_model(name: str, classes: Optional[int] = None, pretrained: Union[bool, str] = False,
              ctx: Union[mx.Context, Sequence[mx.Context], None] = None, **kwargs: Any) -> HybridBlock:
    """Build a network of the zoo: not yet initialized, or with the weights that come with the package.

    Parameters
    ----------
    name : str
        One of :func:`list_models`, the same with another width or rank (``lprnet_mobilenet_x0.6_r12``), or
        a family (``lprnet_mobilenet``) with ``width`` as a keyword.
    classes : int, default 1000
        Outputs of the last layer. Of a trained network those it was trained with; with another number it gets a new
        output layer, which has learned nothing (``net.reset_class(classes)``).
    pretrained : bool or str, default False
        True loads trained weights; the data set's name (``'cifar10'``) where there are several. The names of
        ``list_models(pretrained=True)`` hold it already.
    ctx : mx.Context or list of mx.Context, optional
        Where to load the weights to (default: the CPU).
    small_image : bool, default False
        For images of 32x32: the first two down-samplings are left out.
    width : float, default 1.0
        Width multiplier, unless the name has it.
    rank, residual, l2_norm, l2_norm_scale
        LPR networks only: see :class:`gluon_lprnet.blocks.LPR`.
    activation, padding
        ``mobilenetv1`` and ``compressed_mobilenet`` only: ``'relu6'`` and ``'tensorflow'`` are those of its authors'
        trained networks; see :class:`gluon_lprnet.blocks.ConvBNReLU`.
    global_depthwise
        ``mobilenetv1`` and ``lprnet_mobilenet`` only: the side of the last feature map, over which a depthwise
        convolution goes in place of the average; see :class:`gluon_lprnet.zoo.mobilenetv1.MobileNetV1`.
    ranks, residual, batch_norm
        ``compressed_mobilenet`` only, which is what ``compress`` makes of MobileNetV1: ranks of the eight modules of
        equal width, None for one that stays; whether they have the residual; and False for convolutions with biases.

    Returns
    -------
    mxnet.gluon.HybridBlock
        From NCHW images to logits (N, ``classes``), with ``features`` and ``output`` as in GluonCV.

    Raises
    ------
    InputError
        For an unknown name or width, with what exists, for a keyword that the network does not have, and for
        weights that the package does not have or that were trained with other keywords.
    """
    if pretrained or split_tag(name)[1]:
        return _pretrained(find_card(name, pretrained), classes, ctx, kwargs)
    classes = 1000 if classes is None else classes
    match = _NAME.fullmatch(str(name))
    family_name, switches = _FORMER.get(match['family'], (match['family'], {})) if match else ('', {})
    family = _FAMILIES.get(family_name)
    if match is None or family is None:
        families = [family for family in _FAMILIES if _FAMILIES[family].widths]
        near = difflib.get_close_matches(str(name), list_models() + families, n=3, cutoff=0.5)
        hint = f' Did you mean {" or ".join(near)}?' if near else ''
        raise InputError(f'unknown network {name!r}.{hint} Families: {", ".join(families)}; '
                         'names: gluon_lprnet.list_models().')
    kwargs = {**kwargs, **switches, 'classes': classes}
    for group, keyword, value in (('width', 'width', match['width'] and float(match['width'])),
                                  ('denominator', 'rank', match['denominator'] and _fraction(match))):
        if match[group] is None:
            continue
        if keyword in kwargs:
            raise InputError(f'{keyword} is given twice: by the name {name!r} and as '
                             f'{keyword}={kwargs[keyword]!r}.')
        kwargs[keyword] = value
    _check_keywords(name, family, kwargs)
    return family.build(**kwargs)


def _pretrained(card: Card, classes: Optional[int], ctx: Any, kwargs: dict[str, Any]) -> HybridBlock:
    other = sorted(key for key, value in kwargs.items() if card.keywords.get(key, value) != value
                   or key not in card.keywords)
    if other:
        raise InputError(f'{card.name} was trained with {card.keywords}, not with '
                         f'{", ".join(f"{key}={kwargs[key]!r}" for key in other)}: load it as it is.')
    net = get_model(card.model, **card.keywords)
    # A file may hold float16 to be smaller.
    net.load_parameters(str(card.params), ctx=ctx, cast_dtype=True)
    if classes not in (None, card.keywords['classes']):
        net.reset_class(classes)
    return net


def _fraction(match: re.Match[str]) -> float:
    denominator = int(match['denominator'])
    if denominator == 0:
        raise InputError(f'{match.string!r}: rank m/0 does not exist.')
    return 1 / denominator


def _check_keywords(name: str, family: Family, kwargs: dict[str, Any]) -> None:
    accepted = inspect.signature(family.build).parameters
    unknown = sorted(set(kwargs) - set(accepted))
    if unknown:
        raise InputError(f'{name} has no {", ".join(unknown)}; it takes {", ".join(accepted)}.')
    width = kwargs.get('width', 1.0)
    if not family.any_width and width not in family.widths:
        raise InputError(f'{name}: no width x{width}; choose from '
                         f'{", ".join(f"x{w}" for w in family.widths)}.')
    if not (isinstance(width, (int, float)) and 0 < width < float('inf')):
        raise InputError(f'{name}: the width must be a positive number, not {width!r}.')
    if not (isinstance(kwargs['classes'], int) and kwargs['classes'] > 0):
        raise InputError(f'{name}: classes must be a positive whole number, not {kwargs["classes"]!r}.')
