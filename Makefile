# Each target does its own set-up, on Python 3.9 to 3.13: make PYTHON=python3.12 test
PYTHON ?= python3
VENV = .venv
RUN = $(VENV)/bin/python
DIGITS = runs/digits
FACES = runs/drawn-faces

# Each run of these is a fresh one: a finished training is not resumed.
.PHONY: train face test soak coverage lint docs symbols horovod clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

train: $(VENV)/installed
	rm -rf $(DIGITS)
	$(RUN) -m gluon_lprnet digits $(DIGITS)/data
	$(RUN) train_imagenet.py --preset digits --rec-train $(DIGITS)/data/train.rec --rec-val $(DIGITS)/data/val.rec \
	    --save-dir $(DIGITS)/run
	$(RUN) -m gluon_lprnet evaluate $(DIGITS)/data/val.rec --network $(DIGITS)/run/export/*-symbol.json
	$(RUN) -m gluon_lprnet predict $(DIGITS)/data/held_out/*.png --network $(DIGITS)/run/export/*-symbol.json --top-k 1
	@echo "Curves: $(DIGITS)/run/curves.png. Exported network: $(DIGITS)/run/export."

# Faces drawn by program, not photographs.
face: $(VENV)/installed
	@echo "Draws 1,800 faces and trains on 1,500 of them: about four minutes on four cores; the training shows how many are left."
	rm -rf $(FACES)
	$(RUN) -m gluon_lprnet draw-faces $(FACES)/drawn --count 1500
	for part in train test; do \
	    $(RUN) -m gluon_lprnet pack faces $(FACES)/drawn/$$part --layout 300w-lp --out $(FACES)/$$part || exit 1; done
	$(RUN) train_face.py --model lprnet_mobilenet_x0.25 --num-epochs 50 --lr 0.004 --warmup-epochs 1 \
	    --rec-train $(FACES)/train.rec --rec-val $(FACES)/test.rec --save-dir $(FACES)/run
	$(RUN) -m gluon_lprnet nme $(FACES)/test.rec --network $(FACES)/run/export/*-symbol.json --mean-face $(FACES)/train.rec \
	    --out $(FACES)/figures
	@echo "Drawn faces: figures in $(FACES)/figures, exported network in $(FACES)/run/export."
	@echo "Try next: $(RUN) -m gluon_lprnet align photo.jpg, with the network of the package, which is trained on photos;"
	@echo "or add --network $(FACES)/run for this one. docs/aligning.md is about training on faces of your own."

# One process for each core; the tests of a file share what they set up.
test: $(VENV)/installed
	$(RUN) -m pytest -n auto --dist loadfile --max-worker-restart 0

# 50,000 requests of 64 clients at each batch size, bad ones among them, and a killed worker: ten minutes or more. A small
# network leaves the server itself most of the processor.
soak: $(VENV)/installed
	for size in 1 4 8; do \
	    $(RUN) -m gluon_lprnet soak --network lprnet_mobilenet_x0.5.cifar10 --requests 50000 --clients 64 \
	        --batch-size $$size --run-dir runs/soak-$$size || exit 1; \
	done

# Lines and branches of this process; what tests start as processes of their own is not among them.
coverage: $(VENV)/installed
	$(RUN) -m coverage run -m pytest
	$(RUN) -m coverage report

lint: $(VENV)/installed
	$(RUN) -m ruff check
	$(RUN) -m mypy

docs: $(VENV)/installed
	rm -rf docs/_api build/docs
	$(RUN) -m sphinx -q -W --keep-going docs build/docs
	@echo "Documentation: build/docs/index.html."

# Horovod for trainings with --horovod, built from its source: needs a C++ compiler and a few minutes. It imports MXNet by
# itself, which needs the alias that NumPy has removed; so does horovodrun, with this folder in PYTHONPATH. Its build
# needs an older setuptools, in whose place the pinned one comes again.
horovod: $(VENV)/installed
	mkdir -p build/horovod
	echo 'import numpy; numpy.bool = bool' > build/horovod/sitecustomize.py
	$(RUN) -m pip install -q 'setuptools<70' wheel 'cmake==3.27.*' cffi cloudpickle packaging psutil pyyaml
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" PYTHONPATH="$(CURDIR)/build/horovod" HOROVOD_WITH_MXNET=1 HOROVOD_WITH_GLOO=1 \
	    HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 \
	    $(RUN) -m pip install -q --no-build-isolation --no-deps horovod==0.28.1
	$(RUN) -m pip install -q -r requirements.txt

symbols: $(VENV)/installed
	$(RUN) -m gluon_lprnet symbols

clean:
	rm -rf $(VENV) runs build docs/_api
