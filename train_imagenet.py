#!/usr/bin/env python
"""Train a network of the zoo for image classification: python train_imagenet.py --help"""
import os
import sys

# OpenMP reads this when MXNet is loaded. One core is left for decoding, since spinning threads collapse as
# soon as another one needs their core.
os.environ.setdefault('OMP_NUM_THREADS', str(max(1, len(os.sched_getaffinity(0)) - 1)))

from gluon_lprnet.train.imagenet import main

if __name__ == '__main__':
    sys.exit(main())
