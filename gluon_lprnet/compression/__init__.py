"""A trained network's depthwise separable convolutions turned into LPR modules, without training from nothing."""
from .network import compress, reestimate_statistics
from .tuning import distill, distillation_loss

__all__ = ['compress', 'reestimate_statistics', 'distill', 'distillation_loss']
