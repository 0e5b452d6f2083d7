"""Faults in the recipe, put in one at a time, and whether a test finds each.

    python tests/mutants.py [NAME ...]

works in a scratch copy of the checkout: it replaces one line, runs the test that is to fail, and prints what happened
and the score. It is no part of the tests that CI runs: it takes minutes.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECIPES = 'tests/train/test_recipes.py'


class Mutant(NamedTuple):
    """A fault: in ``file`` the text ``old`` becomes ``new``, and the tests that ``-k selection`` names shall fail."""

    name: str
    file: str
    old: str
    new: str
    selection: str


MUTANTS = [
    Mutant('flips of images inverted', 'data/batches.py', 'rand_mirror=mirror', 'rand_mirror=not mirror',
           'test_augmentation_and_crop_of_images and cifar10'),
    Mutant('flips of faces inverted', 'data/faces/batches.py', 'if self._augmentation.mirror and',
           'if not self._augmentation.mirror and', 'test_augmentation_of_faces and not half'),
    Mutant('color, blur and occlusion never applied', 'data/faces/batches.py',
           'crop = self._augmentation.look(rng, crop)', 'pass', 'test_augmentation_of_faces and not half'),
    Mutant('MSRAPrelu replaced', 'train/imagenet.py', 'mx.init.MSRAPrelu()', 'mx.init.Xavier()',
           'test_initial_weights_of_images and cifar10'),
    Mutant('Xavier replaced', 'train/face.py', 'mx.init.Xavier()', 'mx.init.MSRAPrelu()',
           'test_initial_weights_of_faces and not half'),
    Mutant('seed ignored by the order', 'train/imagenet.py', 'seed=config.seed, augmentation=', 'seed=0, augmentation=',
           'test_the_seed'),
    Mutant('seed ignored by the initialization', 'train/command.py', 'mx.random.seed(config.seed)', 'mx.random.seed(0)',
           'test_the_seed'),
    Mutant('crop scale ignored in training', 'train/face.py', 'config.input_size, config.crop_scale, config.batch_size',
           'config.input_size, CROP_SCALE, config.batch_size', 'test_flags_of_faces'),
    Mutant('tuning augmented', 'train/imagenet.py', 'if epoch >= config.num_epochs:', 'if False:',
           'test_tuning_and_validation and cifar10'),
    Mutant("the paper's scale changed", 'train/imagenet.py', 'setting(256 / 480,', 'setting(0.8,',
           'test_augmentation_and_crop_of_images and mobilenet'),
    Mutant("the paper's illumination changed", 'train/imagenet.py', 'setting(32.0,', 'setting(64.0,',
           'test_augmentation_and_crop_of_images and mobilenet'),
    Mutant('rank space never used in training', 'train/command.py', "(net, config.dtype == 'float32')", '(net, False)',
           'test_the_form_of_the_normalization'),
    Mutant('the stopping rule of Figure 2 off', 'paper/figure2.py', "metrics['top1'] >= accuracy", 'False',
           'test_figure_2_ends'),
    Mutant('face loss averaged', 'train/face.py', '(_known_differences(output, label)).sum(axis=1)',
           '(_known_differences(output, label)).mean(axis=1)', 'test_loss_of_faces and not half'),
]


def found(mutant, copy):
    """Whether one of the selected tests fails with the fault in ``copy``."""
    path = copy / 'gluon_lprnet' / mutant.file
    sound = path.read_text()
    if sound.count(mutant.old) != 1:
        sys.exit(f'{mutant.name}: {mutant.file} has "{mutant.old}" {sound.count(mutant.old)} times, not once.')
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        status = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-x', RECIPES, '-k', mutant.selection], cwd=copy,
                                env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL).returncode
    finally:
        path.write_text(sound)
    if status not in (0, 1):
        sys.exit(f'{mutant.name}: pytest ended with status {status}.')
    return status == 1


def main(names):
    mutants = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'copy'
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', 'runs', '*.pyc'))
        score = 0
        for mutant in mutants:
            caught = found(mutant, copy)
            score += caught
            print(f'{"caught" if caught else "MISSED":8}{mutant.name} ({mutant.selection})', flush=True)
    print(f'{score} of {len(mutants)} caught')
    return 0 if score == len(mutants) else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
