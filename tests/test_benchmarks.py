"""The benchmarks of inference run and print what they promise; times are not looked at."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / 'benchmarks'
RUNTIMES = ['fused', 'operators'] if shutil.which('g++') else ['fused']


def run(script, *arguments):
    return subprocess.run([sys.executable, str(BENCHMARKS / script), *arguments], check=True, stdout=subprocess.PIPE,
                          text=True, env=dict(os.environ, OMP_NUM_THREADS='1')).stdout


def test_inference():
    pytest.importorskip('onnxruntime')
    output = run('inference.py', '--widths', '0.25', '--batch-sizes', '1', '2', '--threads', '1', '--input-size', '32',
                 '--networks', 'mobilenetv1', 'shufflenetv2', 'deployed', '--rounds', '3', '--minutes', '0.01',
                 '--runtimes', *RUNTIMES, 'onnxruntime')
    assert '1 thread, batch 1, 32x32' in output and '1 thread, batch 2, 32x32' in output
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in output.splitlines() if line.startswith('| ')]
    measured = {tuple(row[:2]) for row in rows if len(row) == 3 and row[2] not in ('', '-')}
    for runtime in ('MXNet fused', 'ONNX Runtime'):
        assert {(runtime, 'MobileNetV1'), (runtime, 'LPRNet deployed')} <= measured
        assert (runtime, 'ShuffleNetV2') not in measured, 'there is no ShuffleNetV2 x0.25'
    aims = [row for row in rows if row[-1] in ('met', 'missed')]
    # Speed in each runtime, and time over ONNX Runtime's in each of MXNet.
    assert len(aims) == 2 * len(RUNTIMES) + 1


def test_profile():
    pytest.importorskip('onnxruntime')
    output = run('profile_inference.py', '--width', '0.25', '--input-size', '32', '--networks', 'deployed',
                 '--runtimes', *RUNTIMES, 'onnxruntime')
    rows = [[cell.strip() for cell in line.split('|')[1:3]] for line in output.splitlines() if line.startswith('| ')]
    assert ['L2Normalization', '8'] in rows
    assert rows.count(['low-rank P1, P2', '16']) == 2
    assert (['LPR module', '8'] in rows) == ('operators' in RUNTIMES)
