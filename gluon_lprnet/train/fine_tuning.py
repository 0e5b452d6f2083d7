"""Fine-tuning: a training that begins with trained weights and leaves some of them as they are."""
import os
import re
from collections.abc import Callable
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..artifact import load_network
from ..formats.symbol_files import read_params
from ..utils.errors import InputError

PathLike = Union[str, 'os.PathLike[str]']


def take_weights(net: HybridBlock, source: PathLike,
                 class_names: Optional[list[str]] = None) -> tuple[list[str], list[str]]:
    """Give a network the trained weights that fit it by name and shape.

    Parameters
    ----------
    net : HybridBlock
        Of the zoo, initialized.
    source : path or str
        What :func:`gluon_lprnet.artifact.load_network` takes (the folder of a run or of a checkpoint, a
        ``*-symbol.json``, the name of a trained network of the package), or a ``*.params`` file.
    class_names : list of str, optional
        Of ``net``: the output layer of a network of other classes does not fit, even if it has as many.

    Returns
    -------
    tuple of (list of str, list of str)
        The names of the parameters of ``net`` that stayed as they were, and those of ``source`` that were not taken.

    Raises
    ------
    InputError
        If it is none of these, if a weight is NaN or infinite, or if no weight of a layer fits.
    """
    parameters = net._collect_params_with_prefix()
    found, description = _trained(source, net)
    known = [description.get(key) for key in ('class_names', 'class_ids') if description.get(key)]
    other_classes = bool(class_names and known) and class_names not in known
    fitting = {name for name, parameter in parameters.items()
               if name in found and found[name].shape == parameter.shape
               and not (other_classes and name.startswith('output.'))}
    # A bias or a number per channel alone is nothing learned.
    if not any(len(parameters[name].shape) > 1 for name in fitting):
        raise InputError(f'`init_from` {source}: none of its weights has the name and shape of one of this network. '
                         'Give the weights of the same `model`; only its output layer may differ.')
    for name in sorted(fitting):
        if not np.isfinite(found[name].asnumpy()).all():
            raise InputError(f'`init_from` {source}: the parameter {name} is NaN or infinite. Give other weights.')
    for name in fitting:
        parameters[name].set_data(found[name].astype(parameters[name].dtype))
    return [name for name in parameters if name not in fitting], [name for name in found if name not in fitting]


def freeze(net: HybridBlock, pattern: str) -> list[str]:
    """Leave parameters as they are in training; a BatchNorm of such parameters keeps and uses its running statistics.

    Parameters
    ----------
    net : HybridBlock
    pattern : str
        Regular expression, which is searched for in names such as ``features.3.p1.weight``.

    Returns
    -------
    list of str
        The names of the parameters.

    Raises
    ------
    InputError
        If it is not a regular expression, or matches no parameter that is trained, or all of them.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f'`freeze` {pattern} is not a regular expression: {error}.') from error
    trained = {name: parameter for name, parameter in net._collect_params_with_prefix().items()
               if parameter.grad_req != 'null'}
    frozen = [name for name in trained if search(name)]
    if len(frozen) in (0, len(trained)):
        raise InputError(f'`freeze` {pattern} matches {"all" if frozen else "none"} of the {len(trained)} parameters '
                         f'that are trained; they are called {next(iter(trained))} to {list(trained)[-1]}.')
    for name in frozen:
        trained[name].grad_req = 'null'
    fix_statistics(net, lambda norm: norm.gamma.grad_req == norm.beta.grad_req == 'null')
    return frozen


def fix_statistics(net: HybridBlock, where: Callable[[nn.BatchNorm], bool] = lambda norm: True) -> None:
    """Make BatchNorm use its running statistics in training, without updating them."""
    def fix(block: HybridBlock) -> None:
        if isinstance(block, nn.BatchNorm) and where(block):
            # The effect of the constructor's use_global_stats, on an existing layer.
            block._kwargs['use_global_stats'] = True
    net.apply(fix)


def _trained(source: PathLike, net: HybridBlock) -> tuple[dict[str, mx.nd.NDArray], dict[str, Any]]:
    """Trained parameters, by the names that those of ``net`` have, and the description of their network."""
    description: dict[str, Any] = {}
    try:
        if str(source).endswith('.params') and os.path.isfile(source):
            params = read_params(os.fspath(source))
            found = {name: mx.nd.array(value, dtype=value.dtype) for name, value in params.items()}
        else:
            block, description = load_network(source)
            symbolic = isinstance(block, mx.gluon.SymbolBlock)
            parameters = block.collect_params() if symbolic else block._collect_params_with_prefix()
            found = {name: parameter.data() for name, parameter in parameters.items()}
    except InputError as error:
        raise InputError(f'`init_from` {error}') from error
    # In a symbol's file a name begins with the block's prefix, which has the block's number.
    by_name = {parameter.name[len(net.prefix):]: name for name, parameter in net._collect_params_with_prefix().items()}
    return {by_name.get(name.partition('_')[2], name): value for name, value in found.items()}, description
