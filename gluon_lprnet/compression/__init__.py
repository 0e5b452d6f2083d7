"""A trained network's depthwise separable convolutions turned into LPR modules, without training from scratch."""
from .network import compress
from .originals import import_gluoncv_mobilenet, import_mobilenetv1
from .ranks import Budget, ByLayer, Energy, Fraction, Latency, Rank
from .report import LayerReport, Report
from .shift_pruning import prune_shifts
from .tuning import distill, distillation_loss

__all__ = ['compress', 'Fraction', 'Rank', 'Energy', 'Budget', 'Latency', 'ByLayer', 'Report', 'LayerReport',
           'import_mobilenetv1', 'import_gluoncv_mobilenet', 'distill', 'distillation_loss', 'prune_shifts']
