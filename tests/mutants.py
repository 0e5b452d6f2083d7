"""Faults in the recipe, put in one at a time, and the test that finds each.

    python tests/mutants.py [NAME ...]

works in a scratch copy of the checkout. First it runs the tests on the copy as it is: a test that fails anyway finds
nothing. Then, for each fault, it replaces one line and runs the tests that are to fail. It prints the table of
docs/mutants.md and the score. CI does not run it, because it takes minutes.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECIPES = 'tests/train/test_recipes.py'


class Mutant(NamedTuple):
    """A fault: in ``file`` the text ``old`` becomes ``new``, and a test that ``-k selection`` names should fail."""

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
    Mutant('MSRAPrelu replaced by Xavier (images)', 'train/imagenet.py', 'mx.init.MSRAPrelu()', 'mx.init.Xavier()',
           'test_initial_weights_of_images and cifar10'),
    Mutant('Xavier replaced by MSRAPrelu (faces)', 'train/face.py', 'mx.init.Xavier()', 'mx.init.MSRAPrelu()',
           'test_initial_weights_of_faces and not half'),
    Mutant('seed ignored by the loop', 'train/imagenet.py', 'num_data_workers, seed=config.seed, part',
           'num_data_workers, seed=0, part', 'test_the_seed'),
    Mutant('seed ignored by the initialization', 'train/command.py', 'mx.random.seed(config.seed)', 'mx.random.seed(0)',
           'test_the_seed'),
    Mutant('crop scale ignored in training', 'train/face.py', 'config.input_size, config.crop_scale, workers.share',
           'config.input_size, CROP_SCALE, workers.share', 'test_flags_of_faces'),
    Mutant('final tuning still augmented (images)', 'train/imagenet.py', 'if epoch >= config.num_epochs:', 'if False:',
           'test_tuning_and_validation and cifar10'),
    Mutant("the paper's scale changed", 'train/imagenet.py', 'setting(256 / 480,', 'setting(0.8,',
           'test_augmentation_and_crop_of_images and mobilenet'),
    Mutant("the paper's illumination changed", 'train/imagenet.py', 'setting(32.0,', 'setting(64.0,',
           'test_augmentation_and_crop_of_images and mobilenet'),
    Mutant('rank-space form never used in training', 'train/command.py', "(net, config.dtype == 'float32')",
           '(net, False)', 'test_the_form_of_the_normalization'),
    Mutant('stopping rule of Figure 2 off', 'paper/figure2.py', "metrics['top1'] >= accuracy", 'False',
           'test_figure_2_ends'),
    Mutant('face loss: mean for sum', 'train/face.py', '(_known_differences(output, label)).sum(axis=1)',
           '(_known_differences(output, label)).mean(axis=1)', 'test_loss_of_faces'),
]


def failing_test(copy, selection):
    """The name of the first selected test that fails in ``copy``, or None if all of them pass."""
    done = subprocess.run([sys.executable, '-m', 'pytest', '-x', '-q', '-rf', '--tb=no', RECIPES, '-k', selection],
                          cwd=copy, env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, text=True)
    failed = re.search(r'^FAILED \S+::(\w+(\[.*?\])?)', done.stdout, re.MULTILINE)
    # An error while tests are collected or set up is not a finding.
    if done.returncode != (1 if failed else 0):
        sys.exit(f'pytest -k "{selection}" ended with status {done.returncode}:\n{done.stdout}')
    return failed and failed[1]


def found_by(mutant, copy):
    """The name of the test that fails with the fault in ``copy``, or None."""
    path = copy / 'gluon_lprnet' / mutant.file
    sound = path.read_text()
    if sound.count(mutant.old) != 1:
        sys.exit(f'{mutant.name}: {mutant.file} has "{mutant.old}" {sound.count(mutant.old)} times, not once.')
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        return failing_test(copy, mutant.selection)
    finally:
        path.write_text(sound)


def main(names):
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        sys.exit(f'there is no fault named {", ".join(sorted(unknown))}')
    mutants = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'copy'
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', '.venv', 'runs', 'build', '*.pyc'))
        failed = failing_test(copy, ' or '.join(f'({mutant.selection})' for mutant in mutants))
        if failed:
            sys.exit(f'{failed} fails without any fault: mend it first.')
        score = 0
        print('| Fault | In | Caught by |\n|---|---|---|', flush=True)
        for mutant in mutants:
            test = found_by(mutant, copy)
            score += test is not None
            print(f'| {mutant.name} | `{mutant.file}` | {f"`{test}`" if test else "**nothing**"} |', flush=True)
    print(f'\n{score} of {len(mutants)} caught')
    return 0 if score == len(mutants) else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
