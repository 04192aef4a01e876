.DEFAULT_GOAL := help
PYTHON ?= python3
RUN := .venv/bin/
DEMO := demo
# All tests of a file run in one process, in the order of the files: long ones come first.
IN_TWO_PROCESSES := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /: /'

setup: .venv/.installed  ## Make .venv and install Clozemill in it

demo: setup  ## Generate, pretrain, evaluate and export on data_samples/, into demo/
	rm -rf $(DEMO)
	$(RUN)clozemill generate --flagfile=launch/recipes/demo_generate.flags --output_dir=$(DEMO)/data
	$(RUN)clozemill pretrain --flagfile=launch/recipes/demo.flags --data_dir=$(DEMO)/data \
		--output_dir=$(DEMO)/run
	$(RUN)clozemill evaluate --run_dir=$(DEMO)/run --data_dir=$(DEMO)/data
	$(RUN)clozemill export --run_dir=$(DEMO)/run --output_dir=$(DEMO)/huggingface
	@echo
	@echo "Made from data_samples/english.txt:"
	@echo "  $(DEMO)/data         the data set: TFRecord shards, manifest.json, report.html"
	@echo "  $(DEMO)/run          the run: checkpoints, metrics.jsonl, loss.png, eval_results.json"
	@echo "  $(DEMO)/huggingface  the checkpoint: AutoModel.from_pretrained of transformers opens it"
	@echo "To open it: pip install transformers torch"

lint: .venv/.tested  ## Lint, check the format, check the types
	$(RUN)ruff check
	$(RUN)ruff format --check
	$(RUN)mypy

test: .venv/.tested  ## The tests without the slow ones; those of the model on both backends
	$(RUN)pytest $(IN_TWO_PROCESSES)
	KERAS_BACKEND=jax $(RUN)pytest $(IN_TWO_PROCESSES) -m 'not slow and not no_backend' \
		tests/modeling tests/parity

test-slow: .venv/.benched .venv/.other_environments  ## The slow tests
	$(RUN)pytest -m slow
	KERAS_BACKEND=jax $(RUN)pytest -m slow tests/modeling/test_context.py tests/modeling/training/test_freezing.py

bench: .venv/.benched .venv/.other_environments  ## The speed of generating and training, next to peers in the same run
	$(RUN)python tests/benchmarks/tokenizer_speed.py
	$(RUN)python tests/benchmarks/instance_speed.py
	$(RUN)python tests/benchmarks/generate_speed.py
	$(RUN)python tests/benchmarks/generate_memory.py
	$(RUN)python tests/benchmarks/duplicates_speed.py
	$(RUN)python tests/benchmarks/spark_speed.py
	$(RUN)python tests/benchmarks/train_speed.py
	$(RUN)python tests/benchmarks/packing_speed.py
	$(RUN)python tests/benchmarks/masking_speed.py
	$(RUN)python tests/benchmarks/process_speed.py
	$(RUN)python tests/benchmarks/verification_speed.py
	$(RUN)python tests/benchmarks/store_training_speed.py
	$(RUN)python tests/benchmarks/context_speed.py

# A stamp tells what is installed; pyproject.toml decides what that is.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN)pip install --quiet --editable '.[chinese,export,plot,vocab]'
	touch $@

.venv/.tested: .venv/.installed
	$(RUN)pip install --quiet --editable '.[test]'
	touch $@

# Peers of benchmarks and slow tests, apart: they must not meet what Clozemill itself imports.
.venv/.benched: .venv/.tested Makefile
	$(RUN)pip install --quiet --no-deps --upgrade --target .venv/peers \
		tf-models-official==2.20.0 gin-config==0.5.0 sentencepiece==0.2.3 tf_keras==2.21.0
	touch $@

# Libraries whose pins clash with ours: Optimum needs transformers 4, TF Hub needs Keras 2. And the
# other version of Spark, and Flink. And MLflow, beside all that .venv has: Beam must not meet the
# Google packages that it brings. And text-dedup, with the PySpark that it needs.
.venv/.other_environments: .venv/.tested Makefile
	$(PYTHON) -m venv .venv/optimum
	.venv/optimum/bin/pip install --quiet transformers==4.57.6 optimum==2.1.0 optimum-onnx==0.1.0 \
		onnxruntime==1.32.0 torch
	$(PYTHON) -m venv .venv/tensorflow_hub
	.venv/tensorflow_hub/bin/pip install --quiet tensorflow==2.21.0 tf_keras==2.21.0 \
		tensorflow_hub==0.16.1 'setuptools<81'
	$(RUN)python -m venv .venv/mlflow
	$(RUN)python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' | \
		tee .venv/mlflow/lib/python*/site-packages/clozemill.pth
	.venv/mlflow/bin/pip install --quiet mlflow-skinny==3.17.2 sqlalchemy alembic
	$(PYTHON) -m venv .venv/streaming
	.venv/streaming/bin/pip install --quiet mosaicml-streaming==0.13.0
	$(PYTHON) -m venv .venv/text_dedup
	.venv/text_dedup/bin/pip install --quiet text-dedup==0.4.0 datasets==5.2.0
	$(RUN)pip install --quiet --no-deps --upgrade --target .venv/spark3 pyspark==3.5.9 py4j==0.10.9.9
	$(RUN)pip install --quiet --no-deps --upgrade --target .venv/flink apache-flink-libraries==2.2.1
	touch $@

.PHONY: help setup demo lint test test-slow bench
