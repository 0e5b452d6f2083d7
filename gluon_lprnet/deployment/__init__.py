"""From a trained network to its deployed forms; ``deploy`` is the exact re-parametrization."""
from .reparametrize import deploy

__all__ = ['deploy']
