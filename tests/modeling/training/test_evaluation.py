import dataclasses
import json
import shutil

import numpy as np
import pytest
from keras import ops

from modeling.batches import evaluation_batches, readable
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.run_checkpoints import TrainingState, save_checkpoint
from modeling.optimization import AdamW
from modeling.step.learner import Learner
from modeling.training.evaluation import RESULTS_NAME, evaluate, evaluation_sums, read_results
from pipeline.errors import UserError
from pipeline.manifest import DataSet


@pytest.fixture(scope="module")
def run(tmp_path_factory, shallow_config, write_run, randomize):
    """A run directory with two checkpoints, and the model of the newer one."""
    run_dir = tmp_path_factory.mktemp("run")
    write_run(run_dir, shallow_config, step=7)
    newer = randomize(BertForPreTraining(shallow_config), seed=5)
    optimizer = AdamW(1e-3)
    optimizer.build(newer.trainable_variables)
    save_checkpoint(run_dir, Learner(newer, optimizer), TrainingState(step=12), keep=2)
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
    assert json.loads((run_dir / RESULTS_NAME).read_text()) == results


def test_results_are_those_of_the_requested_checkpoint(tmp_path):
    assert read_results(tmp_path, step=10) is None
    lines = [
        {"step": 10, "masked_lm_loss": 7.0},
        {"step": 10, "eval_masked_lm_loss": 6.0, "eval_next_sentence_loss": 0.5},
        {"step": 20, "masked_lm_loss": 5.0},
        {"step": 20, "eval_masked_lm_loss": 4.0, "eval_next_sentence_loss": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    from_training = {"step": 10, "masked_lm_loss": 6.0, "next_sentence_loss": 0.5}
    assert read_results(tmp_path, step=10) == from_training
    assert read_results(tmp_path, step=15) is None
    from_evaluate = {"step": 20, "masked_lm_loss": 3.0, "next_sentence_loss": 0.125}
    (tmp_path / RESULTS_NAME).write_text(json.dumps(from_evaluate))
    assert read_results(tmp_path, step=20) == from_evaluate
    assert read_results(tmp_path, step=10) == from_training


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
    dataclasses.replace(data_set.manifest, vocab_sha256="0" * 64).write(tmp_path)
    with pytest.raises(UserError, match="vocabular") as raised:
        evaluate(run[0], DataSet.read(tmp_path), batch_size=4)
    assert str(run[0]) in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_instances_longer_than_the_model_reads_are_refused(tmp_path, run, write_data_set):
    write_data_set(tmp_path, [("eval", 0, 3)], max_seq_length=17)
    with pytest.raises(UserError, match="max_position_embeddings") as raised:
        evaluate(run[0], DataSet.read(tmp_path), batch_size=3)
    assert str(tmp_path) in str(raised.value)
