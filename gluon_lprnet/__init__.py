"""LPRNet: lightweight deep networks by low-rank pointwise residual convolution, in MXNet Gluon."""
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ._compat import WITHOUT_MXNET, import_mxnet

if WITHOUT_MXNET not in os.environ:
    import_mxnet()

    # MXNet must have been imported through _compat first.
    from .blocks import LPR
    from .zoo import get_model, list_models

if TYPE_CHECKING:
    from .compression import compress
    from .deployment import deploy
    from .predict.classification import Classifier
    from .predict.face_alignment import FaceAligner

__version__ = '0.1.0'
__all__ = ['LPR', 'get_model', 'list_models', 'load', 'FaceAligner', 'compress', 'deploy', '__version__']


def load(network: Union[str, Path]) -> 'Union[Classifier, FaceAligner]':
    """A trained network that takes pictures as they come.

    Parameters
    ----------
    network : str or path
        A name of ``list_models(pretrained=True)``, a run's or a checkpoint's folder, a ``*-symbol.json`` or
        an ``.onnx`` file.

    Returns
    -------
    gluon_lprnet.predict.classification.Classifier or gluon_lprnet.predict.face_alignment.FaceAligner
        By what the network was trained for. Call its ``predict(images)``.
    """
    from .artifact import task_of
    from .predict.classification import Classifier
    from .predict.face_alignment import FaceAligner
    return FaceAligner(network) if task_of(network) == 'landmarks' else Classifier(network)


def __getattr__(name: str) -> Any:
    # Imported on first use: they need the trainer, which a network of the zoo does not.
    if name == 'FaceAligner':
        from .predict.face_alignment import FaceAligner
        return FaceAligner
    if name == 'compress':
        from .compression import compress
        return compress
    if name == 'deploy':
        from .deployment import deploy
        return deploy
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
