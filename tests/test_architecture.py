"""The rule of docs/architecture.md: a room imports only from earlier ones in its list, and files form no circle."""
import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'gluon_lprnet'


def read_levels(text):
    """Return the place of each room in the numbered list of the document, the lowest first."""
    lines = re.findall(r'^(\d+)\. ((?:`[^`]+`, )*`[^`]+`): ', text, re.MULTILINE)
    return {room.removesuffix('/').removesuffix('.py'): int(number)
            for number, rooms in lines for room in re.findall(r'`([^`]+)`', rooms)}


def read_imports(package):
    """Return what each module of a package imports from it, as dotted names; imports inside functions count."""
    paths = {_dotted(path.relative_to(package.parent)): path for path in package.rglob('*.py')}
    return {module: set(_imported(ast.parse(path.read_text(encoding='utf-8')), module, path, paths))
            for module, path in paths.items()}


def _dotted(path):
    parts = path.with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _imported(tree, module, path, paths):
    package = module if path.name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[:len(package.split('.')) - node.level + 1] if node.level else []
            base = '.'.join(above + [node.module] * bool(node.module))
            # `from ..data import batches` imports a module, `from ..data.batches import ImageBatches` a name of one.
            names = [f'{base}.{alias.name}' if f'{base}.{alias.name}' in paths else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in paths)


def wrong_way(imports, levels):
    """Return the imports that go to a room of the same level or a higher one, as pairs of modules."""
    return sorted((module, name) for module, names in imports.items() for name in names
                  if _room(module) != _room(name) and levels[_room(name)] >= levels[_room(module)])


def _room(module):
    return module.split('.')[1] if '.' in module else '__init__'


def write_package(folder, files):
    for name, text in files.items():
        path = folder / 'package' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    return read_imports(folder / 'package')


@pytest.fixture(scope='module')
def imports():
    return read_imports(PACKAGE)


@pytest.fixture(scope='module')
def levels():
    return read_levels((ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8'))


def test_every_room_has_its_place(imports, levels):
    assert {_room(module) for module in imports} == set(levels)


def test_no_import_goes_up(imports, levels):
    assert wrong_way(imports, levels) == []


def test_no_files_import_each_other(imports):
    # Raises CycleError with the circle.
    assert list(graphlib.TopologicalSorter(imports).static_order())


@pytest.mark.parametrize('line', ['from ..serving.archive import write', 'from ..serving import archive',
                                  'from ..serving import write', 'from .. import serving',
                                  'import package.serving.archive', 'def f():\n    from ..serving import archive'])
def test_an_import_that_goes_up_is_found(tmp_path, line):
    imports = write_package(tmp_path, {'__init__.py': '', 'serving/__init__.py': '', 'serving/archive.py': '',
                                       'deployment/__init__.py': '', 'deployment/export.py': line})
    levels = read_levels('1. `deployment/`: exports\n2. `serving/`: serves\n3. `__init__.py`: names\n')
    (module, name), = wrong_way(imports, levels)
    assert module == 'package.deployment.export' and name.startswith('package.serving')


def test_a_circle_of_files_is_found(tmp_path):
    imports = write_package(tmp_path, {'__init__.py': '', 'one.py': 'from .two import a',
                                       'two.py': 'from . import one'})
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(imports).static_order())
