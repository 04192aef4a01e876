import dataclasses
import hashlib
import json
import logging
import shutil

import numpy as np
import pytest
from keras import ops

from modeling.batches import evaluation_batches, readable
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.run_checkpoints import (
    FileStart,
    TrainingState,
    latest_checkpoint,
    read_state,
    save_checkpoint,
)
from modeling.optimization import AdamW
from modeling.step.learner import Learner
from modeling.training.evaluation import RESULTS_NAME, evaluate, evaluation_sums, read_results
from pipeline.errors import UserError
from pipeline.json_files import read_json, write_json
from pipeline.manifest import DataSet


@pytest.fixture(scope="module")
def run(tmp_path_factory, shallow_config, write_run, randomize):
    """A run directory with two checkpoints, and the model of the newer one."""
    run_dir = tmp_path_factory.mktemp("run")
    write_run(run_dir, shallow_config, step=7)
    newer = randomize(BertForPreTraining(shallow_config), seed=5)
    optimizer = AdamW(1e-3)
    optimizer.build(newer.trainable_variables)
    state = dataclasses.replace(read_state(latest_checkpoint(run_dir)), step=12)
    save_checkpoint(run_dir, Learner(newer, optimizer), state, keep=2)
    return run_dir, newer


def nll_and_hit(logits, label):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum()) - logits[label], np.argmax(logits) == label


def results_by_hand(model, data_set):
    masked_lm, next_sentence = [], []
    batches = evaluation_batches(data_set, batch_size=7)
    for labels in readable(batches, data_set):
        outputs = {name: ops.convert_to_numpy(value) for name, value in model(labels).items()}
        for i, label in enumerate(labels["next_sentence_labels"][:, 0]):
            next_sentence.append(nll_and_hit(outputs["next_sentence_logits"][i], label))
            for p in np.flatnonzero(labels["masked_lm_weights"][i]):
                logits = outputs["masked_lm_logits"][i, p]
                masked_lm.append(nll_and_hit(logits, labels["masked_lm_ids"][i, p]))
    assert len(next_sentence) == 7
    masked_lm_means = np.sum(masked_lm, axis=0) / (len(masked_lm) + 1e-5)
    next_sentence_means = np.mean(next_sentence, axis=0)
    return {
        "masked_lm_loss": masked_lm_means[0],
        "next_sentence_loss": next_sentence_means[0],
        "masked_lm_accuracy": masked_lm_means[1],
        "next_sentence_accuracy": next_sentence_means[1],
    }


@pytest.mark.parametrize("batch_size", [3, 100])
def test_newest_checkpoint_is_evaluated_on_all_eval_instances(run, data_set, batch_size):
    run_dir, model = run
    results = evaluate(run_dir, data_set, batch_size)
    assert results == pytest.approx({"step": 12, **results_by_hand(model, data_set)}, rel=1e-4)
    assert read_json(run_dir / RESULTS_NAME, dict[str, float]) == results


LINES = [
    {"step": 10, "masked_lm_loss": 7.0},
    {"step": 10, "eval_masked_lm_loss": 6.0, "eval_next_sentence_loss": 0.5},
    {"step": 20, "masked_lm_loss": 5.0},
    {"step": 20, "eval_masked_lm_loss": 4.0, "eval_next_sentence_loss": 0.25},
]
FROM_EVALUATE = {
    "step": 20,
    "masked_lm_loss": 3.0,
    "next_sentence_loss": 0.125,
    "masked_lm_accuracy": 0.5,
    "next_sentence_accuracy": 0.75,
}


@pytest.fixture
def state_at(tmp_path):
    """A function that returns the state at a step, after the lines of metrics so far."""

    def state(step):
        lines = [json.dumps(line) + "\n" for line in LINES if line["step"] <= step]
        start = "".join(lines).encode()
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(start[file.tell() :])
        written = FileStart(len(start), hashlib.sha256(start).hexdigest())
        return TrainingState(step=step, metrics=written)

    return state


def test_results_are_those_of_the_requested_checkpoint(tmp_path, state_at):
    assert read_results(tmp_path, TrainingState(step=10)) is None
    last, first = state_at(20), state_at(10)
    from_training = {"step": 10, "masked_lm_loss": 6.0, "next_sentence_loss": 0.5}
    assert read_results(tmp_path, first) == from_training
    assert read_results(tmp_path, state_at(15)) is None
    write_json(tmp_path / RESULTS_NAME, FROM_EVALUATE)
    assert read_results(tmp_path, last) == FROM_EVALUATE
    assert read_results(tmp_path, first) == from_training


@pytest.mark.parametrize(("step", "used"), [(10, True), (20, False)])
def test_results_of_changed_metrics_are_left_out(tmp_path, state_at, caplog, step, used):
    states = {step: state_at(step) for step in (10, 20)}
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("4.0", "1.0"))
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert (read_results(tmp_path, states[step]) is not None) == used
    assert [f"{path} was changed" in message for message in caplog.messages] == [True][used:]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", "\xff", '{"step": 20}', '{"step": true}'),
        json.dumps(FROM_EVALUATE | {"masked_lm_loss": "3.0"}),
        json.dumps(FROM_EVALUATE | {"perplexity": 2.0}),
    ],
)
def test_damaged_results_are_reported(tmp_path, state_at, content):
    (tmp_path / RESULTS_NAME).write_text(content, "latin1")
    with pytest.raises(UserError, match="clozemill evaluate") as raised:
        read_results(tmp_path, state_at(20))
    assert str(tmp_path / RESULTS_NAME) in str(raised.value)


def test_any_flipped_bit_in_the_results_is_noticed(tmp_path, state_at):
    path = tmp_path / RESULTS_NAME
    write_json(path, FROM_EVALUATE)
    content = path.read_bytes()
    for i in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError):
            read_results(tmp_path, state_at(20))


def test_results_of_earlier_builds_are_read(tmp_path, state_at):
    (tmp_path / RESULTS_NAME).write_text(json.dumps(FROM_EVALUATE))
    assert read_results(tmp_path, state_at(20)) == FROM_EVALUATE


@pytest.mark.parametrize("name", ["bert_config.json", "vocab.txt", "manifest.json"])
def test_changed_file_of_the_run_is_reported(tmp_path, run, data_set, name):
    run_dir = shutil.copytree(run[0], tmp_path / "run")
    with (run_dir / name).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="was changed") as raised:
        evaluate(run_dir, data_set, batch_size=4)
    assert str(run_dir / name) in str(raised.value)


def test_damaged_checkpoint_is_reported(tmp_path, run, data_set):
    run_dir = tmp_path / "run"
    shutil.copytree(run[0], run_dir)
    newest = run_dir / "checkpoints" / "step-00000012"
    (newest / "weights.npz").write_bytes(b"")
    with pytest.raises(UserError, match="damaged") as raised:
        evaluate(run_dir, data_set, batch_size=4)
    assert str(newest) in str(raised.value)


def test_damaged_shard_is_reported(tmp_path, run, data_set):
    data_dir = tmp_path / "data"
    shutil.copytree(data_set.directory, data_dir)
    shard = data_dir / data_set.manifest.shards_of("eval")[0].name
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="record 1 of") as raised:
        evaluate(run[0], DataSet.read(data_dir), batch_size=4)
    assert str(shard) in str(raised.value)


def test_no_result_of_a_shard_with_a_wrong_sha256_is_written(tmp_path, run, data_set, swap_records):
    run_dir, data_dir = tmp_path / "run", tmp_path / "data"
    shutil.copytree(run[0], run_dir)
    (run_dir / RESULTS_NAME).unlink(missing_ok=True)
    shutil.copytree(data_set.directory, data_dir)
    shard = data_dir / data_set.manifest.shards_of("eval")[1].name
    swap_records(shard)
    with pytest.raises(UserError, match="SHA-256") as raised:
        evaluate(run_dir, DataSet(data_dir, data_set.manifest), batch_size=4)
    assert str(shard) in str(raised.value)
    assert not (run_dir / RESULTS_NAME).exists()


def test_sums_of_batches_are_added_up():
    batches = [np.array([1, 2]), np.array([4])]
    sums = evaluation_sums(lambda batch: {"tokens": batch.sum(), "sequences": len(batch)}, batches)
    assert sums == {"tokens": 7, "sequences": 3}


def test_directory_without_a_run_is_refused(tmp_path, data_set):
    with pytest.raises(UserError, match="is not a run"):
        evaluate(tmp_path, data_set, batch_size=4)


def test_run_without_a_checkpoint_is_refused(tmp_path, run, data_set):
    run_dir = tmp_path / "run"
    shutil.copytree(run[0], run_dir, ignore=shutil.ignore_patterns("step-*"))
    with pytest.raises(UserError, match="no checkpoint") as raised:
        evaluate(run_dir, data_set, batch_size=4)
    assert str(run_dir) in str(raised.value)


def test_data_set_without_eval_shards_is_refused(tmp_path, run, write_data_set):
    write_data_set(tmp_path, [("train", 0, 3)])
    with pytest.raises(UserError, match="eval_fraction") as raised:
        evaluate(run[0], DataSet.read(tmp_path), batch_size=4)
    assert str(tmp_path) in str(raised.value)


def test_data_with_another_vocabulary_is_refused(tmp_path, run, data_set):
    sha256 = hashlib.sha256(b"[PAD]\n").hexdigest()
    manifest = dataclasses.replace(data_set.manifest, vocab_sha256=sha256)
    with pytest.raises(UserError, match="vocabular") as raised:
        evaluate(run[0], DataSet(tmp_path, manifest), batch_size=4)
    assert str(run[0]) in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_instances_longer_than_the_model_reads_are_refused(tmp_path, run, write_data_set):
    write_data_set(tmp_path, [("eval", 0, 3)], max_seq_length=17)
    with pytest.raises(UserError, match="max_position_embeddings") as raised:
        evaluate(run[0], DataSet.read(tmp_path), batch_size=3)
    assert str(tmp_path) in str(raised.value)
