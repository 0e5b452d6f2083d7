"""The networks, a family a file; each layout is a table of rows to hold against its paper."""
from . import ablation, mobilenetv1, mobilenetv2, shufflenetv1, shufflenetv2  # noqa: F401  they register themselves
from .registry import get_model, list_models

__all__ = ['get_model', 'list_models']
