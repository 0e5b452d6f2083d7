"""Sphinx: the guides beside this file, and the API reference from the docstrings. `make docs` builds them."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gluon_lprnet

project = 'gluon_lprnet'
author = copyright = 'The gluon_lprnet authors'
release = gluon_lprnet.__version__
html_title = f'gluon_lprnet {release}'
html_theme = 'furo'

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.napoleon']
templates_path = ['_templates']
exclude_patterns = ['_templates']
myst_heading_anchors = 3
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
napoleon_google_docstring = False
napoleon_use_ivar = True


def skip_fields(app, what, name, obj, skip, options):
    # Python documents each field of a named tuple as an "Alias for field number N"; the class's docstring says more.
    return True if (obj.__doc__ or '').startswith('Alias for field number') else None


def setup(app):
    app.connect('autodoc-skip-member', skip_fields)
