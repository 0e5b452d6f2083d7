"""Names of classes: those of a file of records, beside those that a network knows."""
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from ..utils.errors import InputError
from ..utils.files import PathLike
from .integrity import RecordSummary, class_names

_NAMES_SHOWN = 5


def labels_of(network: dict[str, Any], records: RecordSummary) -> Optional[np.ndarray]:
    """The classes of a network that the labels of a file stand for, by their names.

    Parameters
    ----------
    network : dict
        The network's description: ``class_names``, in the order of its outputs, and ``class_ids``, other names of
        the same classes, where it has them.
    records : gluon_lprnet.data.integrity.RecordSummary

    Returns
    -------
    ndarray of int or None
        The network's class by label; None where the labels are the classes, or the names of either are not known.

    Raises
    ------
    InputError
        If the file has a class that the network does not know, or fewer names than classes.
    """
    names = class_names(records.path)
    if names and records.label_max >= len(names):
        raise InputError(f'{records.path} has the label {records.label_max:g}, and names of {len(names)} classes: '
                         'complete the names, or pack it again.')
    return outputs_of(network, names, records.path)


def outputs_of(network: dict[str, Any], names: Optional[Sequence[str]], source: PathLike) -> Optional[np.ndarray]:
    """The outputs of a network for classes, by their names.

    Parameters
    ----------
    network : dict
        As of :func:`labels_of`.
    names : sequence of str, optional
        Of the classes, in their order.
    source : path
        What has these classes, for the message.

    Returns
    -------
    ndarray of int or None
        As of :func:`labels_of`, which raises InputError for the same fault.
    """
    known = [list(network[key]) for key in ('class_names', 'class_ids') if network.get(key)]
    if not names or not known or list(names) in known:
        return None
    for classes in known:
        if set(names) <= set(classes) and len(set(classes)) == len(classes):
            return np.array([classes.index(name) for name in names])
    strange = [name for name in names if not any(name in classes for classes in known)]
    raise InputError(f'{source} has other classes than the network: {_some(strange or names)}; the network knows '
                     f'{_some(known[0])}. Give another file, or pack it again with the names of the network '
                     '(`classes`).')


def _some(names):
    more = f' and {len(names) - _NAMES_SHOWN} more' if len(names) > _NAMES_SHOWN else ''
    return ', '.join(names[:_NAMES_SHOWN]) + more
