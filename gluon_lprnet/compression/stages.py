"""A network run stage by stage, so that a layer can be fitted before the next one is run."""
import copy
import json
from collections.abc import Sequence

import mxnet as mx
from mxnet.gluon import SymbolBlock

from .modules import Pointwise, PointwiseGraph

__all__ = ['Stage', 'stages', 'Activations']

# A node's number and which of its outputs.
Entry = tuple[int, int]
# Of one batch of images, by entry.
Activations = dict[Entry, mx.nd.NDArray]


class Stage:
    """The operators between two pointwise convolutions, or from the input and to the output.

    Parameters
    ----------
    graph : PointwiseGraph
    nodes : sequence of int
        Of the stage, by their numbers.
    kept : sequence of (int, int)
        The entries that later stages take, or that the network puts out.
    """

    def __init__(self, graph: PointwiseGraph, nodes: Sequence[int], kept: Sequence[Entry]) -> None:
        inside = set(nodes)
        self.inputs = list(dict.fromkeys(
            (source, output) for index in nodes for source, output, *_ in graph.nodes[index]['inputs']
            if source not in inside and graph.nodes[source]['name'] not in graph.params))
        self.outputs = [entry for entry in kept if entry[0] in inside]
        self._block = self._as_block(graph, nodes) if self.outputs else None

    def run(self, activations: Activations) -> Activations:
        """What it puts out for a batch; it takes what it needs from ``activations``."""
        if self._block is None:
            return {}
        found = self._block(*(activations[entry] for entry in self.inputs))
        return dict(zip(self.outputs, found if isinstance(found, (list, tuple)) else [found]))

    def _as_block(self, graph, nodes):
        rewritten = copy.deepcopy(graph.graph)
        variables = {}
        for number, entry in enumerate(self.inputs):
            rewritten['nodes'].append({'op': 'null', 'name': f'stage_input{number}', 'inputs': []})
            variables[entry] = [len(rewritten['nodes']) - 1, 0, 0]
        for index in nodes:
            node = rewritten['nodes'][index]
            node['inputs'] = [variables.get((source, output), [source, output, *version])
                              for source, output, *version in node['inputs']]
        rewritten['heads'] = [[*entry, 0] for entry in self.outputs]
        symbol = mx.sym.load_json(json.dumps(rewritten))
        names = set(symbol.list_inputs())
        block = SymbolBlock(symbol, [mx.sym.var(f'stage_input{number}', dtype='float32')
                                     for number in range(len(self.inputs))])
        block.collect_params().load_dict({name: value for name, value in graph.params.items() if name in names},
                                         ctx=graph.context)
        return block


def stages(graph: PointwiseGraph, layers: Sequence[Pointwise]) -> tuple[list[Stage], list[list[Entry]]]:
    """The stages in front of each of ``layers``, in the order of computation, and what is still needed after each.

    Returns
    -------
    tuple of (list of Stage, list of list of (int, int))
        For each layer the operators that come before its last node and after that of the layer before it; and the
        entries that are still taken by something once the layer has been run, those that no stage has made yet
        included.
    """
    merged = {index for layer in layers for index in (layer.node, layer.last)}
    operators = [index for index, node in enumerate(graph.nodes) if node['op'] != 'null' and index not in merged]
    takers: dict[Entry, int] = {(source, output): len(graph.nodes)
                                for source, output, *_ in graph.graph['heads']}
    for index, node in enumerate(graph.nodes):
        for source, output, *_ in node['inputs']:
            takers[source, output] = max(index, takers.get((source, output), -1))
    # A layer takes its input when its last node is reached.
    for layer in layers:
        entry = tuple(graph.nodes[layer.node]['inputs'][0][:2])
        takers[entry] = max(takers[entry], layer.last)
    found, needed, begin = [], [], 0
    for layer in layers:
        nodes = [index for index in operators if begin <= index < layer.last]
        kept = [entry for entry, taker in takers.items() if taker >= layer.last]
        found.append(Stage(graph, nodes, kept))
        needed.append([entry for entry, taker in takers.items() if taker > layer.last])
        begin = layer.last
    return found, needed
