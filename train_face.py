#!/usr/bin/env python
"""Train a network of the zoo for 68 facial landmarks: python train_face.py --help"""
import sys

from gluon_lprnet.train.face import main

if __name__ == '__main__':
    sys.exit(main())
