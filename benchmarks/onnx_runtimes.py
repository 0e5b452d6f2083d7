"""How far the outputs of exported ONNX files are off in OpenCV's cv2.dnn and in OpenVINO, at several batch sizes.

    python benchmarks/onnx_runtimes.py exported/NAME-deployed.onnx exported/NAME-int8.onnx

Compared with ONNX Runtime, which gets the images one by one; OpenVINO where it is installed (pip install openvino), as
it runs by default and asked for float32. Each number is the largest difference over the largest output.
"""
import argparse
import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gluon_lprnet.artifact import relative_difference
from gluon_lprnet.utils.text import render_table


def load_opencv(path):
    net = cv2.dnn.readNetFromONNX(path)

    def run(data):
        net.setInput(data)
        return net.forward()
    return run


def load_openvino(path, **settings):
    import openvino
    compiled = openvino.Core().compile_model(path, 'CPU', settings)
    return lambda data: compiled({'data': data})[0]


def load_onnxruntime(path):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda data: session.run(None, {'data': data})[0]


RUNTIMES = {f'cv2.dnn {cv2.__version__}': load_opencv}
if importlib.util.find_spec('openvino'):
    import openvino
    version = openvino.__version__.split('-')[0]
    RUNTIMES[f'OpenVINO {version}'] = load_openvino
    RUNTIMES[f'OpenVINO {version}, f32'] = lambda path: load_openvino(path, INFERENCE_PRECISION_HINT='f32')


def measure(path, load, batch_sizes):
    """The largest relative difference from ONNX Runtime by batch size; a list of float, or the reason there is none."""
    reference = load_onnxruntime(path)
    try:
        run = load(path)
    except (cv2.error, RuntimeError) as error:
        return f'does not load: {str(error).strip().splitlines()[-1][:60]}'
    side = onnxruntime.InferenceSession(path).get_inputs()[0].shape[-1]
    differences = []
    for size in batch_sizes:
        images = np.random.default_rng(size).normal(0, 1, (size, 3, side, side)).astype('float32')
        expected = np.concatenate([reference(images[number:number + 1]) for number in range(size)])
        found = np.asarray(run(images))
        differences.append(relative_difference(found, expected) if found.shape == expected.shape else np.nan)
    return differences


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', metavar='FILE.onnx', help='exported networks')
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1, 2, 3, 8], help='default: 1 2 3 8')
    args = parser.parse_args()
    for path in args.files:
        rows = []
        for name, load in RUNTIMES.items():
            found = measure(path, load, args.batch_sizes)
            rows.append((name, found) if isinstance(found, str) else (name, *(f'{each:.1e}' for each in found)))
        columns = ('runtime', *(f'batch of {size}' for size in args.batch_sizes))
        rows = [(*row, *[''] * (len(columns) - len(row))) for row in rows]
        print(f'{path}\n\n{render_table(columns, rows, "text")}\n')


if __name__ == '__main__':
    main()
