import dataclasses
import hashlib
import itertools
import os
import tempfile
from collections import Counter

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Small models take longer to compile than to run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# JAX compiles what another process or model of this run has compiled no second time. The processes
# of xdist inherit the folder.
if os.environ["KERAS_BACKEND"] == "jax" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="clozemill-compiled-")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": compiled.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.run_checkpoints import (
    TrainingState,
    digests_of_run,
    save_checkpoint,
)
from modeling.config import BertConfig
from modeling.optimization import AdamW
from modeling.step.learner import Learner
from modeling.training.run_directory import prepare_run
from modeling.training_options import TrainingOptions
from pipeline.buckets import Bucket
from pipeline.corpus import DocumentBatch
from pipeline.manifest import (
    VOCABULARY_NAME,
    DataSet,
    Manifest,
    Shard,
    format_version_of,
    row_options,
)
from pipeline.options import InstanceOptions, Masking
from pipeline.records import encode_examples, read_frames
from pipeline.shards import ShardPlan, build_shard
from pipeline.storage import location
from pipeline.vocabulary import Vocabulary

MAX_SEQ_LENGTH, MAX_PREDICTIONS, VOCAB_SIZE = 16, 3, 50
FIRST_ORDINARY_ID = 5
# The parts of a manifest that a model card reports.
GENERATE_OPTIONS = {
    "dupe_factor": 2,
    "masked_lm_prob": 0.15,
    "do_whole_word_mask": True,
    "word_segmenter": None,
}
CORPUS = {
    "documents_tokenized": 60,
    "sentences_read": 928,
    "tokens": 20012,
    "share_unknown": 0.00125,
    "input_bytes": 79055,
}
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def config():
    return BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=MAX_SEQ_LENGTH,
    )


@pytest.fixture(scope="session")
def original_shapes(config):
    """The shapes in an original checkpoint by name, spelt out."""
    v, s, h, f = VOCAB_SIZE, MAX_SEQ_LENGTH, config.hidden_size, config.intermediate_size
    dense = {"kernel": (h, h), "bias": (h,)}
    norm = {"gamma": (h,), "beta": (h,)}
    groups = {
        "bert/embeddings": {
            "word_embeddings": (v, h),
            "token_type_embeddings": (2, h),
            "position_embeddings": (s, h),
        },
        "bert/embeddings/LayerNorm": norm,
        "bert/pooler/dense": dense,
        "cls/predictions": {"output_bias": (v,)},
        "cls/predictions/transform/dense": dense,
        "cls/predictions/transform/LayerNorm": norm,
        "cls/seq_relationship": {"output_weights": (2, h), "output_bias": (2,)},
    }
    for i in range(config.num_hidden_layers):
        layer = f"bert/encoder/layer_{i}"
        groups |= {
            f"{layer}/attention/self/query": dense,
            f"{layer}/attention/self/key": dense,
            f"{layer}/attention/self/value": dense,
            f"{layer}/attention/output/dense": dense,
            f"{layer}/attention/output/LayerNorm": norm,
            f"{layer}/intermediate/dense": {"kernel": (h, f), "bias": (f,)},
            f"{layer}/output/dense": {"kernel": (f, h), "bias": (h,)},
            f"{layer}/output/LayerNorm": norm,
        }
    return {f"{group}/{name}": shape for group in groups for name, shape in groups[group].items()}


@pytest.fixture(scope="session")
def shallow_config(config):
    """A config with one layer, which compiles faster."""
    return dataclasses.replace(config, num_hidden_layers=1)


def _instances(first_number, count, max_seq_length=MAX_SEQ_LENGTH):
    """Random instances whose second and third token spell their number (up to 2025)."""
    rng = np.random.default_rng(first_number)
    ids = rng.integers(FIRST_ORDINARY_ID, VOCAB_SIZE, (count, max_seq_length))
    number = np.arange(first_number, first_number + count)
    base = VOCAB_SIZE - FIRST_ORDINARY_ID
    ids[:, 1] = FIRST_ORDINARY_ID + number // base
    ids[:, 2] = FIRST_ORDINARY_ID + number % base
    position = np.arange(max_seq_length)
    length = rng.integers(8, max_seq_length + 1, (count, 1))
    mask = (position < length).astype(np.int64)
    predictions = rng.integers(1, MAX_PREDICTIONS + 1, (count, 1))
    weights = np.arange(MAX_PREDICTIONS) < predictions
    positions = np.sort(
        np.stack([rng.choice(np.arange(3, 8), MAX_PREDICTIONS, replace=False) for _ in number])
    )
    return {
        "input_ids": ids * mask,
        "input_mask": mask,
        "segment_ids": mask * (position >= 5),
        "masked_lm_positions": positions * weights,
        "masked_lm_ids": rng.integers(FIRST_ORDINARY_ID, VOCAB_SIZE, weights.shape) * weights,
        "masked_lm_weights": weights.astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, (count, 1)),
    }


@pytest.fixture(scope="session")
def instance_numbers():
    """A function that returns the numbers that a batch's instances spell."""

    def numbers(batch):
        ids = np.asarray(batch["input_ids"]) - FIRST_ORDINARY_ID
        return (ids[:, 1] * (VOCAB_SIZE - FIRST_ORDINARY_ID) + ids[:, 2]).tolist()

    return numbers


@pytest.fixture(scope="session")
def make_batch():
    """A function that makes a batch in the form that the trainer gets."""

    def make(size, first_number=0):
        return {
            name: values if values.dtype == np.float32 else values.astype(np.int32)
            for name, values in _instances(first_number, size).items()
        }

    return make


@pytest.fixture(scope="session")
def write_data_set():
    """A function that writes a data set of shards (split, pass, instances).

    Instances are numbered consecutively.
    """

    # Imported here so that tests of the model can run with JAX alone.
    import tensorflow as tf

    def write(data_dir, shards, max_seq_length=MAX_SEQ_LENGTH):
        data_dir.mkdir(parents=True, exist_ok=True)
        ordinary = [f"word{i}" for i in range(FIRST_ORDINARY_ID, VOCAB_SIZE)]
        vocabulary = data_dir / VOCABULARY_NAME
        vocabulary.write_text("\n".join([*SPECIAL_TOKENS, *ordinary]) + "\n", "utf-8")
        described, first_number = [], 0
        numbers = {"train": itertools.count(), "eval": itertools.count()}
        totals = Counter(split for split, _, _ in shards)
        for split, pass_index, count in shards:
            name = f"{split}-{next(numbers[split]):05d}-of-{totals[split]:05d}.tfrecord"
            path = data_dir / name
            with tf.io.TFRecordWriter(str(path)) as writer:
                if count:
                    for record in encode_examples(_instances(first_number, count, max_seq_length)):
                        writer.write(record)
            described.append(
                Shard(
                    name=path.name,
                    split=split,
                    pass_index=pass_index,
                    documents=count,
                    instances=count,
                    tokens=0,
                    bytes=path.stat().st_size,
                    sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                )
            )
            first_number += count
        manifest = Manifest(
            max_seq_length=max_seq_length,
            max_predictions_per_seq=MAX_PREDICTIONS,
            do_lower_case=True,
            vocab_size=VOCAB_SIZE,
            vocab_sha256=hashlib.sha256(vocabulary.read_bytes()).hexdigest(),
            options=GENERATE_OPTIONS,
            statistics={"corpus": CORPUS},
            shards=described,
        )
        manifest.write(data_dir)
        return DataSet(data_dir, manifest)

    return write


def _documents(seed, count):
    """Random documents, of words with one to five pieces."""
    rng = np.random.default_rng(seed)
    sentences = rng.integers(3, 14, count * 5)
    tokens = int(sentences.sum())
    word_starts = rng.random(tokens) < 0.6
    word_starts[np.cumsum(sentences) - sentences] = True
    return DocumentBatch(
        ids=rng.integers(FIRST_ORDINARY_ID, VOCAB_SIZE, tokens).astype(np.uint16),
        word_starts=word_starts,
        sentence_ends=np.cumsum(sentences),
        document_ends=np.arange(5, count * 5 + 1, 5),
    )


@pytest.fixture(scope="session")
def write_unmasked():
    """A function that writes a data set whose masks are drawn while training.

    A shard is (split, pass, documents). There are as many buckets as the first pass has shards.
    """

    def write(data_dir, shards, **options):
        data_dir.mkdir(parents=True, exist_ok=True)
        ordinary = [f"word{i}" for i in range(FIRST_ORDINARY_ID, VOCAB_SIZE)]
        vocab_file = data_dir / VOCABULARY_NAME
        vocab_file.write_text("\n".join([*SPECIAL_TOKENS, *ordinary]) + "\n", "utf-8")
        vocabulary = Vocabulary(vocab_file)
        options = InstanceOptions(
            **{"max_seq_length": MAX_SEQ_LENGTH, "masking": Masking.TRAINING, **options}
        )
        buckets, counts = Counter(), {"train": Counter(), "eval": Counter()}
        totals, described = Counter(split for split, _, _ in shards), []
        numbers = {"train": itertools.count(), "eval": itertools.count()}
        for split, pass_index, documents in shards:
            plan = ShardPlan(
                Bucket(split, buckets[split, pass_index]),
                pass_index,
                f"{split}-{next(numbers[split]):05d}-of-{totals[split]:05d}.tfrecord",
            )
            buckets[split, pass_index] += 1
            batch = _documents(plan.bucket.index, documents)
            built = build_shard(plan, batch, vocabulary, options, data_dir / plan.name)
            described.append(built.shard)
            counts[split].update(built.counts)
        limits = options.limits_of_rows
        manifest = Manifest(
            max_seq_length=options.max_seq_length,
            max_predictions_per_seq=options.max_predictions_per_seq,
            do_lower_case=True,
            vocab_size=VOCAB_SIZE,
            vocab_sha256=vocabulary.sha256,
            options={
                **GENERATE_OPTIONS,
                **{name: value for name, value in vars(options).items() if value is not None},
                **row_options(limits),
            },
            statistics={"corpus": CORPUS, **{name: dict(counts[name]) for name in totals}},
            shards=described,
            format_version=format_version_of(limits, options.masking),
        )
        manifest.write(data_dir)
        return DataSet.read(data_dir)

    return write


@pytest.fixture(scope="module")
def store(server):
    """A server of S3 on loopback, to which the environment leads."""
    return server


@pytest.fixture
def send_data_set(store):
    """A function that sends a data set to a bucket of its own, and returns it as it is there."""
    store.reset()

    def send(data_set):
        folder = location(store.make_bucket()) / "data"
        for file in data_set.directory.iterdir():
            (folder / file.name).upload(file)
        remote = DataSet.read(folder)
        store.reset()
        return remote

    yield send
    store.reset()


@pytest.fixture(scope="session")
def swap_records():
    """A function that swaps the first two records of a shard: only its SHA-256 is then wrong."""

    def swap(path):
        with path.open("rb") as file:
            first, second, *others = read_frames(file)
        path.write_bytes(b"".join([second, first, *others]))

    return swap


@pytest.fixture(scope="session")
def data_set(tmp_path_factory, write_data_set):
    """A small data set, not to be changed."""
    data_dir = tmp_path_factory.mktemp("data")
    shards = [("train", 0, 7), ("train", 0, 6), ("train", 1, 13), ("eval", 0, 4), ("eval", 0, 3)]
    return write_data_set(data_dir, shards)


@pytest.fixture(scope="session")
def randomize():
    """A function that sets all variables, including biases, to random values of notable size."""

    def set_random(model, seed=0):
        rng = np.random.default_rng(seed)
        model.set_named_weights(
            {
                name: (name.endswith("gamma") + 0.2 * rng.standard_normal(variable.shape)).astype(
                    np.float32
                )
                for name, variable in model.named_weights().items()
            }
        )
        return model

    return set_random


@pytest.fixture(scope="session")
def write_run(data_set, randomize):
    """A function that writes a run on `data_set` whose checkpoints have different random weights.

    It returns the model with the weights of the newest checkpoint.
    """
    options = dataclasses.asdict(TrainingOptions())

    def write(run_dir, config, step=3, earlier_steps=()):
        prepare_run(run_dir, config, data_set)
        model = BertForPreTraining(config)
        optimizer = AdamW(1e-3)
        optimizer.build(model.trainable_variables)
        learner = Learner(model, optimizer)
        for seed, saved in enumerate([*earlier_steps, step]):
            randomize(model, seed)
            state = TrainingState(
                step=saved,
                instances_seen=32 * saved,
                options=options,
                sha256=digests_of_run(run_dir),
            )
            save_checkpoint(run_dir, learner, state, keep=5)
        return model

    return write
