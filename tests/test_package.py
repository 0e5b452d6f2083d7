"""What is released: the wheel with its console script, and the files that describe the package."""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import gluon_lprnet

ROOT = Path(__file__).parents[1]


def pip(*arguments):
    subprocess.run([sys.executable, '-m', 'pip', '-q', *arguments], check=True)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The package's wheel, built from a copy: setuptools writes beside its sources."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    shutil.copytree(ROOT / 'gluon_lprnet', source / 'gluon_lprnet', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, source)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Folder of the programs of a virtual environment that has the wheel and, beside it, the packages of this one."""
    folder = tmp_path_factory.mktemp('environment')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    pip('--python', folder / 'bin' / 'python', 'install', '--no-deps', wheel)
    packages = next((folder / 'lib').glob('python*')) / 'site-packages'
    (packages / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return folder / 'bin'


@pytest.fixture
def run(installed, tmp_path):
    """Runs an installed program in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}

    def run(*command):
        return subprocess.run([installed / command[0], *command[1:]], cwd=tmp_path, env=environment, text=True,
                              capture_output=True)
    return run


def test_the_installed_package_is_the_one_that_runs(run, installed):
    done = run('python', '-c', 'import gluon_lprnet; print(gluon_lprnet.__file__)')
    assert Path(done.stdout.strip()).is_relative_to(installed.parent), done.stderr


def test_console_script(run):
    done = run('gluon-lprnet', '--version')
    assert (done.returncode, done.stdout) == (0, f'{gluon_lprnet.__version__}\n'), done.stderr

    done = run('gluon-lprnet', 'complexity', 'no_such_network')
    assert done.returncode == 2
    assert done.stderr.startswith("gluon-lprnet: unknown network 'no_such_network'")
    assert 'Traceback' not in done.stderr


def test_symbols_written_by_the_installed_package(run, tmp_path):
    assert run('gluon-lprnet', 'symbols', '--out', 'written').returncode == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / 'written').iterdir()}
    assert written == {path.name: path.read_bytes() for path in (ROOT / 'symbols').iterdir()}


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith('gluon_lprnet/')}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith('/METADATA'))).decode()
        assert any(name.endswith('/LICENSE') for name in archive.namelist())
    package = ROOT / 'gluon_lprnet'
    assert packed == {str(path.relative_to(ROOT)) for path in package.rglob('*')
                      if path.is_file() and '__pycache__' not in path.parts}
    assert f'\nVersion: {gluon_lprnet.__version__}\n' in metadata
    assert '\nClassifier: License :: OSI Approved :: Apache Software License\n' in metadata


def test_citation():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0'
    assert {'message', 'title', 'authors'} <= set(citation)
    assert citation['version'] == gluon_lprnet.__version__
    for paper in (citation['preferred-citation'], *citation['references']):
        assert [author['family-names'] for author in paper['authors']] == ['Sun', 'Li', 'Shao', 'Fu']
    assert citation['preferred-citation']['doi'] in (ROOT / 'README.md').read_text()


def test_the_changelog_has_this_version():
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    assert re.search(rf'^## {re.escape(gluon_lprnet.__version__)} \(', changelog, re.MULTILINE)
