# `make train` and `make test` do their own set-up, on Python 3.9 to 3.13: make PYTHON=python3.12 test
PYTHON ?= python3
VENV = .venv
RUN = $(VENV)/bin/python
DIGITS = runs/digits

.PHONY: train test symbols clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

# Each run is a fresh one: a finished training is not resumed.
train: $(VENV)/installed
	rm -rf $(DIGITS)
	$(RUN) -m gluon_lprnet digits $(DIGITS)/data
	$(RUN) train_imagenet.py --preset digits --rec-train $(DIGITS)/data/train.rec --rec-val $(DIGITS)/data/val.rec \
	    --save-dir $(DIGITS)/run
	$(RUN) -m gluon_lprnet evaluate $(DIGITS)/run/export/*-symbol.json --rec-val $(DIGITS)/data/val.rec
	$(RUN) -m gluon_lprnet predict $(DIGITS)/run/export/*-symbol.json $(DIGITS)/data/held_out/*.png --top-k 1
	@echo "Curves: $(DIGITS)/run/curves.png. Exported network: $(DIGITS)/run/export."

test: $(VENV)/installed
	$(RUN) -m pytest tests

symbols: $(VENV)/installed
	$(RUN) -m gluon_lprnet symbols

clean:
	rm -rf $(VENV) runs
