"""A worker of a test: trains on records with fixed statistics of BatchNorm, and leaves its parameters in a file."""
import json
import sys

import gluon_lprnet  # noqa: F401  before MXNet, for NumPy's sake
import mxnet as mx
import numpy as np

from gluon_lprnet.train import command, distributed, face, imagenet
from gluon_lprnet.train.fine_tuning import fix_statistics


def parameters_of(net):
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


def main(recipe, settings):
    module, config_class = {'classes': (imagenet, imagenet.ClassificationConfig),
                            'landmarks': (face, face.LandmarkConfig)}[recipe]
    config = config_class(**json.loads(settings))
    rank = distributed.workers_of(config).rank
    # Those of the first worker are taken by all.
    mx.random.seed(rank)
    task = module.build_task(config)
    fix_statistics(task.net)
    metrics = command.fit(task, config)
    np.savez(f'{config.save_dir}/worker-{rank}.npz', **parameters_of(task.net))
    print(json.dumps([rank, metrics]))


if __name__ == '__main__':
    main(*sys.argv[1:])
