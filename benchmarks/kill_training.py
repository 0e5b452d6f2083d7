"""Kill a small training again and again, resume it each time, and compare its end with an undisturbed one bit by bit.

SIGKILL comes at a random time, or at one of the steps of the saving: before a call of Python's that changes the disk,
and at the beginning and end of the functions that write a checkpoint. Then trainings run on disks that are too small,
which end with one sentence, and resume when there is room. Compared are parameters, averaged weights, the optimizer's
state, the sums of the epoch, the journal and the exported network. A checkpoint that was complete is never lost.

A disk is a tmpfs where this process may mount one, else a limit on the size of a file. Findings are printed as they
come, and what was counted after every ten trainings, at the end and when it is interrupted. Example:
``python benchmarks/kill_training.py --kills 200 --disks 40``. Exit status 1 if there is a finding.
"""
import argparse
import contextlib
import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

# No threads of MXNet's, which a child would lack; before it is imported.
os.environ['MXNET_ENGINE_TYPE'] = 'NaiveEngine'
os.environ['OMP_NUM_THREADS'] = '1'
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cv2
import gluon_lprnet  # noqa: F401  before MXNet
import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from tqdm import tqdm

from gluon_lprnet import checkpoint
from gluon_lprnet.blocks import LPR, ConvBNReLU
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.train import imagenet, journal
from gluon_lprnet.utils.flags import non_negative_int, positive_int
from gluon_lprnet.utils.signals import exit_on_sigterm
from gluon_lprnet.zoo.network import Network
from gluon_lprnet.zoo.registry import register

SECONDS = 300
# Of the training below.
STEPS = 12
# SGD, averaged weights, Adam: what a checkpoint holds of each differs.
VARIANTS = ((), ('--ema-decay', '0.9'), ('--optimizer', 'adam', '--lr', '0.002'))
# Of Python's functions in C. A file is written in many pieces, which the random times come between.
CHANGES_THE_DISK = {'open', 'mkdir', 'fsync', 'replace', 'rename', 'unlink', 'rmdir'}
LOGGED = re.compile(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ')


@register(widths=(), any_width=True)
class Tiny(Network):
    """A convolution and an LPR module: a save takes as long as a step."""

    def __init__(self, classes, small_image=False, width=1.0):
        super().__init__()
        with self.name_scope():
            self.features = nn.HybridSequential()
            self.features.add(ConvBNReLU(16, 3, 2, in_channels=3), LPR(16), nn.GlobalAvgPool2D(), nn.Flatten())
            self.output = nn.Dense(classes, in_units=16)


def write_pictures(prefix):
    """64 pictures of three classes that differ in color."""
    chance = np.random.default_rng(0)
    labels = np.arange(64) % 3
    pixels = chance.integers(0, 120, (64, 16, 16, 3), dtype='uint8')
    pixels[np.arange(64), :, :, labels] += 100
    write_records(prefix, [(int(label), cv2.imencode('.png', each)[1].tobytes())
                           for label, each in zip(labels, pixels)], classes=['blue', 'green', 'red'])


def flags(records, folder, variant):
    """12 steps in 3 epochs, a checkpoint after every step, and another one of the same step after each validation."""
    return ['--preset', 'cifar10', '--model', 'tiny', '--num-classes', '3', '--input-size', '16', '--batch-size', '16',
            '--num-epochs', '2', '--warmup-epochs', '1', '--tuning-epochs', '1', '-j', '1', '--pad', '2', '--rec-train',
            f'{records}.rec', '--rec-val', f'{records}.rec', '--save-interval', '1e-9', '--log-interval', '3',
            '--save-dir', str(folder), '--resume', 'auto', *VARIANTS[variant]]


class SavingSteps:
    """Counts the steps of each save; at step ``last`` of save number ``save`` or a later one it calls ``act``."""

    def __init__(self, report, save, last, act):
        self._report, self._save, self._last, self._act = report, save, last, act
        self._saves = self.count = self.most = 0
        self._write = checkpoint.save

    def __call__(self, *args, **kwargs):
        self._saves, self.count = self._saves + 1, 0
        sys.setprofile(self._look)
        try:
            path = self._write(*args, **kwargs)
        finally:
            sys.setprofile(None)
        self.most = max(self.most, self.count)
        self._report(path.name)
        return path

    def _look(self, frame, event, arg):
        if event == 'c_call':
            owner = getattr(arg, '__self__', None)
            module = getattr(owner, '__name__', None) or type(owner).__module__
            counts = arg.__name__ in CHANGES_THE_DISK and module in ('posix', '_io', 'io')
        else:
            counts = event in ('call', 'return') and frame.f_code.co_filename == checkpoint.__file__
        if counts:
            self.count += 1
            if self._last and self._saves >= self._save and self.count == self._last:
                self._act()


class Ended:
    """How a training ended: ``status`` as of ``os.waitpid``, names of whole checkpoints, what was said, steps."""

    def __init__(self, status, saved, said, steps):
        self.status, self.saved, self.said, self.steps = status, saved, said, steps

    @property
    def was_killed(self):
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL


def train(argv, console, after=None, save=None, step=None, largest_file=None):
    """Run a training in a process of its own, and kill it after so many seconds or at a step of a save."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.close(reader)
            descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            # A hang is a finding too.
            signal.alarm(SECONDS)
            if largest_file:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
            steps = SavingSteps(lambda name: os.write(writer, f'{name}\n'.encode()), save, step,
                                lambda: os.kill(os.getpid(), signal.SIGKILL))
            checkpoint.save = steps
            # A picture of the journal, which is compared, and most of a process's time.
            journal.draw_curves = lambda run_dirs, path: None
            status = imagenet.main(argv)
            os.write(writer, f'{steps.most}\n'.encode())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    killer = threading.Timer(after, os.kill, (child, signal.SIGKILL)) if after is not None else None
    if killer:
        killer.start()
    try:
        with open(reader) as pipe:
            reported = pipe.read().split()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        if killer:
            # Before the number of the process is free again.
            killer.cancel()
            killer.join()
        _, status = os.waitpid(child, 0)
    saved = [name for name in reported if name.startswith('step-')]
    steps = next((int(number) for number in reported if number.isdigit()), 0)
    return Ended(status, saved, Path(console).read_text(errors='replace'), steps)


def end_of(folder):
    """What a training has come to, as bytes by name."""
    newest = checkpoint.newest(folder, report=lambda line: None)
    found = {'state': {key: value for key, value in newest.state.items() if key not in ('config', 'data')},
             'journal': [{key: value for key, value in record.items() if key != 'images_per_second'}
                         for record in journal.read_metrics(Path(folder) / 'metrics.jsonl')]}
    arrays = {}
    for file in sorted(newest.path.glob('*.params')):
        arrays.update((f'{file.name} {name}', value.asnumpy()) for name, value in mx.nd.load(str(file)).items())
    with np.load(newest.path / 'optimizer.npz') as archive:
        arrays.update((f'optimizer.npz {name}', archive[name]) for name in archive)
    found.update((name, (array.shape, array.dtype.name, array.tobytes())) for name, array in arrays.items())
    # What a kill left aside begins with a dot.
    found.update((f'export/{file.name}', file.read_bytes()) for file in (Path(folder) / 'export').glob('[!.]*'))
    return found


def differences(found, expected):
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def lost(folder, saved):
    """What is wrong with the newest checkpoint after a kill, given the names of those that were complete; or None."""
    reports = []
    newest = checkpoint.newest(folder, reports.append)
    if reports:
        return f'a damaged checkpoint: {reports[0]}'
    name = newest.path.name[:len('step-00000000')] if newest else ''
    if saved and name < max(saved):
        return f'{max(saved)} was complete, and the newest is {name or "none"}'
    return None


def messages(said):
    """Lines of the console that are neither the log's nor empty."""
    return [line for line in said.splitlines() if line.strip() and not LOGGED.match(line)]


class Trial:
    """The trainings of one call of this program."""

    def __init__(self, scratch, seed, report):
        self.scratch, self.chance, self.report = Path(scratch), random.Random(seed), report
        self.findings, self.counts = [], Counter()
        self.records, self.console = self.scratch / 'pictures', self.scratch / 'console'
        write_pictures(self.records)
        self.expected, self.seconds, self.steps = [], 0.0, 0
        for variant in range(len(VARIANTS)):
            begin = time.monotonic()
            ended = train(flags(self.records, self.scratch / f'undisturbed-{variant}', variant), self.console)
            if ended.status:
                raise RuntimeError(f'the undisturbed training failed: {ended.said}')
            self.seconds, self.steps = time.monotonic() - begin, max(self.steps, ended.steps)
            self.expected.append(end_of(self.scratch / f'undisturbed-{variant}'))

    def find(self, what):
        self.findings.append(what)
        self.report(what)

    def summary(self):
        counts = self.counts
        at_random, at_step = counts['at a random time'], counts['at a step of a save']
        return (f'{at_random + at_step} kills, {at_random} at a random time and {at_step} at '
                f'{counts["different steps of a save"]} of the {self.steps} steps of a save; {counts["full disks"]} '
                f'full disks; {counts["trainings"]} trainings compared with undisturbed ones; {len(self.findings)} '
                'findings')

    def finished(self, folder, variant):
        """Compare the end of a training."""
        self.counts['trainings'] += 1
        if self.counts['trainings'] % 10 == 0:
            self.report(self.summary())
        differing = differences(end_of(folder), self.expected[variant])
        if differing:
            self.find(f'{folder.name}: the end differs in {", ".join(differing[:5])}')

    def kills(self, count):
        """``count`` kills; every other one at a step of the saving, all of which come in turn."""
        turn = itertools.cycle(self.chance.sample(range(1, self.steps + 1), self.steps))
        bar, reached = tqdm(total=count, desc='kills', disable=None, leave=False), set()
        for number in itertools.count():
            folder, variant, saved = self.scratch / f'killed-{number}', number % len(VARIANTS), []
            while True:
                left = STEPS - (int(saved[-1][len('step-'):]) if saved else 0)
                step = next(turn) if self.counts['at a step of a save'] <= self.counts['at a random time'] else None
                done = self.counts['at a step of a save'] + self.counts['at a random time']
                # A training that is nearly done is left to end.
                when = {} if left < 2 or done == count else (
                    {'save': self.chance.randint(1, min(4, left)), 'step': step} if step
                    else {'after': self.chance.uniform(0, self.seconds * left / STEPS)})
                ended = train(flags(self.records, folder, variant), self.console, **when)
                saved += ended.saved
                if ended.was_killed:
                    bar.update()
                    self.counts['at a step of a save' if step else 'at a random time'] += 1
                    reached |= {step} - {None}
                    self.counts['different steps of a save'] = len(reached)
                    fault = lost(folder, saved)
                    if fault:
                        self.find(f'{folder.name}, {when}: {fault}')
                elif ended.status:
                    self.find(f'{folder.name}, {when}: status {ended.status}: {" ".join(messages(ended.said))[-300:]}')
                    break
                else:
                    self.finished(folder, variant)
                    break
            if done == count:
                break
        bar.close()

    def disks(self, count):
        """``count`` trainings on disks that are full at some moment."""
        for number in tqdm(range(count), 'disks', disable=None, leave=False):
            folder, variant = self.scratch / f'disk-{number}', number % len(VARIANTS)
            folder.mkdir()
            needed = sum(file.stat().st_size for file in (self.scratch / f'undisturbed-{variant}').rglob('*'))
            with disk(folder, int(needed * self.chance.uniform(0.02, 1.2))) as (limit, make_room):
                ended = train(flags(self.records, folder / 'run', variant), self.console, largest_file=limit)
                if ended.status:
                    self.counts['full disks'] += 1
                    said = messages(ended.said)
                    if os.waitstatus_to_exitcode(ended.status) != 2 or len(said) != 1 or 'cannot be ' not in said[0]:
                        self.find(f'{folder.name}: status {ended.status}, not one sentence: {said[-5:]}')
                    fault = lost(folder / 'run', ended.saved)
                    if fault:
                        self.find(f'{folder.name}: {fault}')
                    make_room()
                    ended = train(flags(self.records, folder / 'run', variant), self.console)
                if ended.status:
                    self.find(f'{folder.name}: with room again: {" ".join(messages(ended.said))[-300:]}')
                else:
                    self.finished(folder / 'run', variant)


@contextlib.contextmanager
def disk(folder, size):
    """A disk of ``size`` bytes at ``folder``: the limit on a file that stands for one, or None, and ``make_room``."""
    pages = max(1, size // resource.getpagesize()) * resource.getpagesize()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={pages}', 'tmpfs', str(folder)],
                      stderr=subprocess.DEVNULL).returncode:
        yield size // 10, lambda: None
        return
    try:
        yield None, lambda: subprocess.run(['mount', '-o', 'remount,size=100%', str(folder)], check=True)
    finally:
        subprocess.run(['umount', str(folder)], check=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=positive_int, default=200, help='default: %(default)s')
    parser.add_argument('--disks', type=non_negative_int, default=40,
                        help='trainings on disks that are full at some moment (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: %(default)s)')
    args = parser.parse_args(argv)
    with exit_on_sigterm(), tempfile.TemporaryDirectory(prefix='kill-') as scratch:
        trial = Trial(scratch, args.seed, lambda line: print(line, flush=True))
        try:
            trial.kills(args.kills)
            trial.disks(args.disks)
        finally:
            trial.report(trial.summary())
    return 1 if trial.findings else 0


if __name__ == '__main__':
    sys.exit(main())
