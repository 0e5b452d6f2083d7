"""From a trained network to what users run; ``deploy`` is the exact re-parametrization."""
from .reparametrize import deploy

__all__ = ['deploy']
