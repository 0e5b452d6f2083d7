"""The networks, one family per file; each layout is a table that can be compared with its paper."""
# They register themselves.
from . import (  # noqa: F401
    compressed,
    condensenet,
    densenet,
    espnetv2,
    igcv3,
    irregular,
    mnasnet,
    mobilenetv1,
    mobilenetv2,
    shiftresnet,
    shufflenetv1,
    shufflenetv2,
)
from .registry import get_model, list_models

__all__ = ['get_model', 'list_models']
