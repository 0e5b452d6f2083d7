"""Train MobileNetV1 on handwritten digits, classify pictures, compress the network, export it, and run it elsewhere.

    python examples/classify_compress_export.py [FOLDER]

The digits are scikit-learn's, so nothing is fetched. FOLDER (default: runs/example) gets the data, the run and the
exported networks. Takes less than a minute.
"""
import sys
from pathlib import Path

import gluon_lprnet                                             # before mxnet
import mxnet as mx
import numpy as np
import onnxruntime

from gluon_lprnet.artifact import export_network, load_network
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.digits import pack_digits
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.deployment.export import export
from gluon_lprnet.evaluate.classification import evaluate_classification
from gluon_lprnet.train import imagenet


def main(folder='runs/example'):
    folder = Path(folder)
    data = folder / 'data'
    pack_digits(data)
    imagenet.train(imagenet.ClassificationConfig.from_preset(
        'digits', model='mobilenetv1_x0.25', num_epochs=4, tuning_epochs=1, num_data_workers=1,
        rec_train=str(data / 'train.rec'), rec_val=str(data / 'val.rec'), save_dir=str(folder / 'run')))

    # Classify: any picture, as a file, its bytes or an array.
    classifier = gluon_lprnet.load(folder / 'run')
    pictures = sorted((data / 'held_out').iterdir())
    for picture, (best, *_) in zip(pictures, classifier.predict(pictures)):
        print(f'{picture.name}: {best.label} ({best.probability:.2f})')

    # Compress: each pointwise convolution of equal width becomes an LPR module, fitted to images as the network saw.
    net, description = load_network(folder / 'run')
    batches = {part: validation_batches(check_records(data / f'{part}.rec'), description, 500, threads=1)
               for part in ('train', 'val')}
    # Batches lie in memory that the reader uses again.
    images = next(iter(batches['train'].epoch(0))).data.as_in_context(mx.cpu())
    smaller, report = gluon_lprnet.compress(net, rank=1 / 4, calibration=images)
    print(report)
    for name, each in (('trained', net), ('compressed', smaller)):
        print(f'{name}: top-1 {evaluate_classification(each, batches["val"], mx.cpu())["top1"]:.3f}')

    # Export: for MXNet without this package and for ONNX, and in both cases in the fast form of inference.
    symbol = export_network(smaller, {**description, 'model': 'digits'}, folder / 'compressed')
    for path in export(symbol, folder / 'exported', formats=('mxnet', 'onnx')):
        print(f'{path} ({path.stat().st_size:,} bytes)')
    session = onnxruntime.InferenceSession(str(folder / 'exported' / 'digits-deployed.onnx'))
    found = session.run(None, {session.get_inputs()[0].name: images[:100].asnumpy()})[0]
    difference = np.abs(found - smaller(images[:100]).asnumpy()).max()
    print(f'ONNX Runtime answers as MXNet does: outputs differ by {difference:.0e} at most.')


if __name__ == '__main__':
    main(*sys.argv[1:])
