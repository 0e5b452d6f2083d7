"""What is released: the wheel with its console script, and the files that describe the package."""
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import encode

import gluon_lprnet
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.faces.landmarks import landmark_box

ROOT = Path(__file__).parents[1]


def pip(*arguments):
    subprocess.run([sys.executable, '-m', 'pip', '-q', *arguments], check=True)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """What the package is built from, as a copy: setuptools writes beside its sources."""
    source = tmp_path_factory.mktemp('source')
    shutil.copytree(ROOT / 'gluon_lprnet', source / 'gluon_lprnet', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    return source


def build(source, folder, python=sys.executable):
    pip('--python', python, 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, source)
    return next(folder.glob('*.whl'))


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith('/METADATA'))).decode()


def make_environment(folder):
    """A virtual environment with the packages of this one beside its own: its site-packages."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    packages = next((folder / 'lib').glob('python*')) / 'site-packages'
    (packages / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return packages


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Folder of the programs of a virtual environment that the wheel is installed into."""
    folder = tmp_path_factory.mktemp('environment')
    make_environment(folder)
    pip('--python', folder / 'bin' / 'python', 'install', '--no-deps', wheel)
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


def test_another_build_of_mxnet_is_kept(wheel, source, tmp_path):
    assert '\nRequires-Dist: mxnet==1.9.1\n' in metadata_of(wheel)
    build_for_gpus = make_environment(tmp_path / 'environment') / 'mxnet_cu112-1.9.1.dist-info'
    build_for_gpus.mkdir()
    (build_for_gpus / 'METADATA').write_text('Metadata-Version: 2.1\nName: mxnet-cu112\nVersion: 1.9.1\n')
    metadata = metadata_of(build(source, tmp_path, tmp_path / 'environment' / 'bin' / 'python'))
    assert 'Requires-Dist: mxnet' not in metadata and '\nRequires-Dist: numpy' in metadata


USE = """
import json, gluon_lprnet, sys
pretrained = gluon_lprnet.list_models(pretrained=True)
classes = gluon_lprnet.load('compressed_mobilenet_x0.75.imagenet').predict('face.png', top_k=2)[0]
face, = gluon_lprnet.load('lprnet_mobilenet_x0.5.faces').predict('face.png', boxes=[[json.loads(sys.argv[1])]])[0]
print(json.dumps([pretrained, [[each.label, each.probability] for each in classes], face.landmarks.tolist()]))
"""


def test_networks_of_the_installed_package(run, tmp_path):
    """From a folder with nothing but a picture: by the API and by the commands, as the checkout's own API answers."""
    picture, landmarks, _ = draw_face(np.random.default_rng(2))
    (tmp_path / 'face.png').write_bytes(encode(picture))
    box = landmark_box(landmarks).tolist()
    expected = gluon_lprnet.load('compressed_mobilenet_x0.75.imagenet').predict(picture, top_k=2)[0]
    face, = gluon_lprnet.FaceAligner().predict(picture, boxes=[[box]])[0]

    done = run('python', '-c', USE, json.dumps(box))
    assert done.returncode == 0, done.stderr
    pretrained, classes, points = json.loads(done.stdout)
    assert pretrained == gluon_lprnet.list_models(pretrained=True) and len(pretrained) >= 3
    assert [label for label, _ in classes] == [each.label for each in expected]
    assert [value for _, value in classes] == pytest.approx([each.probability for each in expected], abs=1e-5)
    assert np.allclose(points, face.landmarks, atol=0.05)

    done = run('gluon-lprnet', 'predict', 'face.png', '--top-k', '2', '--json')
    assert done.returncode == 0, done.stderr
    assert [each['label'] for each in json.loads(done.stdout)['classes']] == [each.label for each in expected]

    (tmp_path / 'boxes.json').write_text(json.dumps({'face.png': [box]}))
    done = run('gluon-lprnet', 'align', 'face.png', '--boxes', 'boxes.json', '--out', 'aligned')
    assert done.returncode == 0, done.stderr
    image, = json.loads((tmp_path / 'aligned' / 'landmarks.json').read_text())['images']
    assert np.allclose(image['faces'][0]['points'], face.landmarks, atol=0.05)
    assert (tmp_path / 'aligned' / 'face.png').is_file()


def test_symbols_written_by_the_installed_package(run, tmp_path):
    assert run('gluon-lprnet', 'symbols', '--out', 'written').returncode == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / 'written').iterdir()}
    assert written == {path.name: path.read_bytes() for path in (ROOT / 'symbols').iterdir()}


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith('gluon_lprnet/')}
        assert any(name.endswith('/LICENSE') for name in archive.namelist())
    metadata = metadata_of(wheel)
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
