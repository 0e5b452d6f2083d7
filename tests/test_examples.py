"""The scripts in examples/ run as they stand, from another folder, and their answers are right."""
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gluon_lprnet.data.images import read_image

ROOT = Path(__file__).parents[1]


def run(name, folder, *arguments):
    done = subprocess.run([sys.executable, ROOT / 'examples' / name, *arguments], cwd=folder, text=True,
                          capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_faces(tmp_path):
    printed = run('faces.py', tmp_path, 'out.jpg')
    errors = [float(error) for error in re.findall(r'NME ([\d.]+)%', printed)]
    assert len(errors) == 8 and max(errors) < 10
    # The picture of the README is this one, but for the JPEG encoder's version.
    found, committed = read_image(tmp_path / 'out.jpg'), read_image(ROOT / 'docs' / 'faces.jpg')
    assert np.abs(found.astype(int) - committed).mean() < 2 and committed.std() > 20


@pytest.mark.slow
def test_classify_compress_export(tmp_path):
    printed = run('classify_compress_export.py', tmp_path)
    digits = re.findall(r'is-a-(\d)\.png: (\d)', printed)
    assert len(digits) == 10 and sum(is_a == said for is_a, said in digits) >= 8
    trained, compressed = (float(re.search(rf'{name}: top-1 ([\d.]+)', printed)[1])
                           for name in ('trained', 'compressed'))
    assert trained > 0.8 and compressed > trained - 0.1
    assert float(re.search(r'differ by (\S+) at most', printed)[1]) < 1e-3
    exported = {path.name for path in (tmp_path / 'runs' / 'example' / 'exported').iterdir()}
    assert {'digits-deployed-symbol.json', 'digits-deployed.onnx'} <= exported
