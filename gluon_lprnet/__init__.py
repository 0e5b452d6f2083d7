"""LPRNet: lightweight deep networks by low-rank pointwise residual convolution, in MXNet Gluon."""
from ._compat import import_mxnet

import_mxnet()

from .blocks import LPR  # noqa: E402  MXNet must have been imported through _compat first
from .zoo import get_model, list_models  # noqa: E402

__version__ = '0.1.0'
__all__ = ['LPR', 'get_model', 'list_models', 'load', 'compress', 'deploy', '__version__']


def load(network):
    """A trained network that takes pictures as they come.

    Parameters
    ----------
    network : str or path
        A name of ``list_models(pretrained=True)``, a run's or a checkpoint's folder, or a ``*-symbol.json``.

    Returns
    -------
    gluon_lprnet.predict.classification.Classifier
        Call its ``predict(images)``.
    """
    from .predict.classification import Classifier
    return Classifier(network)


def __getattr__(name):
    # Imported on first use: they need the trainer, which a network of the zoo does not.
    if name == 'compress':
        from .compression import compress
        return compress
    if name == 'deploy':
        from .deployment import deploy
        return deploy
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
