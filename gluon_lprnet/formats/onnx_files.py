"""ONNX files as networks, in ONNX Runtime."""
from pathlib import Path
from types import ModuleType
from typing import Any, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import Block

from ..utils.errors import InputError
from ..utils.processes import available_cpus
from .standard import SIZES, candidates, check_output, normalization_of, pixel_facts
from .symbol_files import last_line, read_bytes

__all__ = ['OnnxNetwork', 'external_files', 'load_onnx', 'open_session', 'require_onnx']

_TYPES = {'tensor(float)': 'float32', 'tensor(double)': 'float64', 'tensor(float16)': 'float16',
          'tensor(uint8)': 'uint8'}
_SOFTMAX = {'Softmax', 'LogSoftmax'}
_SHAPES_ONLY = {'Flatten', 'Reshape', 'Squeeze', 'Identity'}
_ARRANGING = {'Transpose', 'Cast', 'Identity'}
_ARITHMETIC = {'Sub', 'Div', 'Mul', 'Add', 'BatchNormalization'}
_COMMUTATIVE = {'Mul', 'Add'}


def require_onnx() -> tuple[ModuleType, ModuleType]:
    """Import the optional packages.

    Returns
    -------
    tuple of modules
        onnx, onnxruntime

    Raises
    ------
    InputError
        If one is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f'ONNX needs a package that is not installed ({error.name}): '
                         'pip install "onnx<1.19" "onnxruntime<1.21".') from error
    return onnx, onnxruntime


def external_files(path: Union[str, Path]) -> list[Path]:
    """The files beside an ONNX file that hold its weights, where it does not itself; InputError if it is damaged."""
    onnx, _ = require_onnx()
    try:
        tensors = onnx.load_from_string(read_bytes(path)).graph.initializer
    except Exception as error:
        raise InputError(f'{path} is not an ONNX model, or is damaged: {last_line(error)}') from error
    return [Path(path).parent / name for name in sorted({entry.value for tensor in tensors
                                                         for entry in tensor.external_data if entry.key == 'location'})]


def open_session(model: Union[str, bytes], threads: int = 1) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, of a file or of a model's bytes."""
    _, onnxruntime = require_onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Errors only: it warns about what a quantizer leaves for it to fold.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])


class OnnxNetwork(Block):
    """An ONNX model that is called as networks of the package are: with NDArrays (N, 3, height, width), float32.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        With one input and one output.
    layout : str
        ``NCHW`` or ``NHWC``: what the model takes.
    """

    def __init__(self, session: Any, layout: str) -> None:
        super().__init__()
        self._session, self._layout = session, layout
        self._input, = session.get_inputs()
        batch = self._input.shape[0]
        self._batch = batch if isinstance(batch, int) else None

    def forward(self, x: mx.nd.NDArray) -> mx.nd.NDArray:
        """Outputs (N, K), on the device of ``x``."""
        return mx.nd.array(self.run(x.asnumpy()), ctx=x.context)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Outputs (N, K) float32 for images (N, 3, height, width)."""
        return self.raw(images).reshape(len(images), -1).astype('float32')

    def raw(self, images: np.ndarray) -> np.ndarray:
        """What the model gives for images (N, 3, height, width), of any shape and type."""
        images = images if self._layout == 'NCHW' else images.transpose(0, 2, 3, 1)
        dtype = _TYPES[self._input.type]
        images = np.ascontiguousarray(images.round() if dtype == 'uint8' else images, dtype)
        # A model of a fixed batch gets whole ones.
        size = self._batch or len(images)
        padding = np.zeros((-len(images) % size, *images.shape[1:]), dtype)
        whole = np.concatenate([images, padding])
        outputs = [self._session.run(None, {self._input.name: whole[begin:begin + size]})[0]
                   for begin in range(0, len(whole), size)]
        return np.concatenate(outputs)[:len(images)]


def load_onnx(path: Union[str, Path], description: dict[str, Any]) -> tuple[OnnxNetwork, dict[str, Any]]:
    """Load an ONNX file of any program, without the softmax that it may end in.

    Parameters
    ----------
    path : path
    description : dict
        Its ``input_size`` is used, where it has one.

    Returns
    -------
    tuple of (OnnxNetwork, dict)
        The network, and what it says itself of its description (:class:`gluon_lprnet.formats.standard.Standard`).

    Raises
    ------
    InputError
        If the file is damaged, has several inputs or outputs, or does not give one row of numbers for each RGB image;
        if onnx or onnxruntime is not installed.
    """
    onnx, _ = require_onnx()
    data = read_bytes(path)
    try:
        model = onnx.load_from_string(data)
        onnx.external_data_helper.load_external_data_for_model(model, str(Path(path).parent))
        onnx.checker.check_model(model)
    # protobuf, onnx and onnxruntime raise exceptions of their own, which have no base in common.
    except Exception as error:
        raise InputError(f'{path} is not an ONNX model, or is damaged: {last_line(error)}') from error
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    for name, constant in constants.items():
        values = onnx.numpy_helper.to_array(constant)
        if values.dtype.kind == 'f' and not np.isfinite(values).all():
            raise InputError(f'{path}: {name} has NaN or infinite values.')
    inputs = [entry.name for entry in graph.input if entry.name not in constants]
    outputs = [entry.name for entry in graph.output]
    for kind, names in (('input', inputs), ('output', outputs)):
        if len(names) != 1:
            raise InputError(f'{path} has {len(names)} {kind}s{": " if names else ""}{", ".join(names)}; a network of '
                             'one is taken.')
    _drop_softmax(onnx, graph, path)
    session = _session_of(model, path)
    input_, = session.get_inputs()
    if input_.type not in _TYPES:
        raise InputError(f'{path} takes {input_.type}, and not images.')
    network, layout, size, width = _fitting(session, input_, path, description.get('input_size'))
    normalization = _normalization(onnx, model, inputs[0], layout, size, path)
    return network, {'num_classes': width, **({} if size == SIZES[0] else {'input_size': size}),
                     **pixel_facts(normalization, of_bytes=_TYPES[input_.type] == 'uint8')}


def _session_of(model, path):
    try:
        return open_session(model.SerializeToString(), available_cpus())
    except Exception as error:
        raise InputError(f'{path} is not a model that ONNX Runtime can load: {last_line(error)}') from error


def _producers(graph):
    return {name: node for node in graph.node for name in node.output}


def _drop_softmax(onnx, graph, path):
    """Have the model give what goes into the softmax at its end."""
    producers, name = _producers(graph), graph.output[0].name
    while name in producers:
        node = producers[name]
        if node.op_type == 'Sigmoid':
            raise InputError(f'{path} ends in {name!r}, a sigmoid, which gives each class a probability of its own: '
                             'networks of one class for each image are taken.')
        if node.op_type not in _SOFTMAX | _SHAPES_ONLY:
            return
        name = node.input[0]
        if node.op_type in _SOFTMAX:
            kind = graph.output[0].type.tensor_type.elem_type
            del graph.output[:]
            graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
            return


def _fitting(session, input_, path, size):
    """The network, the layout and side of its images, and the number of its outputs."""
    reasons = []
    for layout, side, shape in candidates(size):
        if any(isinstance(length, int) and length != ours for length, ours in zip(input_.shape[1:], shape[1:])):
            continue
        network = OnnxNetwork(session, layout)
        try:
            output = network.raw(np.zeros((2, 3, side, side), 'float32')).shape
        except Exception as error:
            reasons.append(last_line(error))
            continue
        check_output(output, path)
        return network, layout, side, output[1]
    fixed = [length for length in input_.shape[2:] if isinstance(length, int) and length > 4]
    if size is None and len(input_.shape) == 4 and fixed:
        return _fitting(session, input_, path, max(fixed))
    raise InputError(f'{path} takes {list(input_.shape)}, and no square RGB images'
                     f'{f" of {size} pixels a side" if size else ""}{f": {reasons[0]}" if reasons else ""}.')


def _normalization(onnx, model, name, layout, size, path):
    """What the model makes of pixels before its first layer."""
    current, arithmetic = name, []
    constants = {constant.name for constant in model.graph.initializer} | {
        node.output[0] for node in model.graph.node if node.op_type == 'Constant'}
    while True:
        users = [node for node in model.graph.node if current in node.input]
        if len(users) != 1 or users[0].op_type not in _ARRANGING | _ARITHMETIC:
            break
        node, = users
        if node.input[0] != current and not (node.op_type in _COMMUTATIVE and node.input[0] in constants):
            break
        current = node.output[0]
        if node.op_type in _ARITHMETIC:
            arithmetic.append(node)
    if not arithmetic:
        return None
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(onnx.ValueInfoProto(name=arithmetic[-1].output[0]))
    session = _session_of(part, path)
    if session.get_outputs()[0].type != 'tensor(float)':
        raise InputError(f'{path} normalizes pixels in another precision than float32, by which mean and deviation '
                         'cannot be told: write it in float32, or without the normalization.')
    input_, = session.get_inputs()
    batch = input_.shape[0] if isinstance(input_.shape[0], int) else 1

    def run(images):
        batches = (np.stack([image] * batch).astype(_TYPES[input_.type]) for image in images)
        return np.stack([session.run(None, {name: each})[0][0] for each in batches])
    return normalization_of(run, layout, size, {node.op_type for node in arithmetic} == {'BatchNormalization'})
