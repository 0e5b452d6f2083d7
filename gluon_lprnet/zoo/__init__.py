"""The networks, one family per file; each layout is a table that can be compared with its paper."""
from . import mobilenetv1, mobilenetv2, shufflenetv1, shufflenetv2  # noqa: F401  they register themselves
from .registry import get_model, list_models

__all__ = ['get_model', 'list_models']
