#!/usr/bin/env python
"""Train a network of the zoo for image classification: python train_imagenet.py --help"""
import sys

from gluon_lprnet.train.imagenet import main

if __name__ == '__main__':
    sys.exit(main())
