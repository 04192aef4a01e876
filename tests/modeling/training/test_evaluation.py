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
from modeling.checkpoints.pretrained import read_pretrained
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
from pipeline.files import sha256_of
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
    shards = data_set.manifest.shards_of("eval")
    assert len(next_sentence) == sum(shard.instances for shard in shards)
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
    results = evaluate(read_pretrained(run_dir), data_set, batch_size)
    named = {
        "data_dir": str(data_set.directory),
        "manifest_sha256": sha256_of(data_set.directory / "manifest.json"),
    }
    assert {name: results.pop(name) for name in named} == named
    assert results == pytest.approx({"step": 12, **results_by_hand(model, data_set)}, rel=1e-4)
    written = read_json(run_dir / RESULTS_NAME, dict[str, list])["evaluations"]
    assert written == [results | named]


SUMS = {
    "masked_lm_nll": 20.0,
    "masked_lm_correct": 5.0,
    "masked_lm_weights": 10.0,
    "next_sentence_nll": 2.0,
    "next_sentence_correct": 7.0,
    "sequences": 8.0,
}


@pytest.fixture
def no_computation(monkeypatch):
    """Instead of computing them, which takes seconds, gives the same sums for all weights."""
    monkeypatch.setattr("modeling.training.evaluation.evaluation_sums", lambda *_: SUMS)


@pytest.mark.usefixtures("no_computation")
def test_several_data_sets_are_side_by_side(tmp_path, run, data_set, write_data_set):
    """Each step, too; the same step on the same data, wherever that is now, has one place."""
    run_dir = shutil.copytree(run[0], tmp_path / "run")
    (run_dir / RESULTS_NAME).unlink(missing_ok=True)
    other = write_data_set(tmp_path / "other", [("train", 0, 3), ("eval", 0, 5)])
    moved = DataSet.read(shutil.copytree(data_set.directory, tmp_path / "moved"))
    older = run_dir / "checkpoints" / "step-00000003"
    shutil.copytree(run_dir / "checkpoints" / "step-00000007", older)
    state = read_state(run_dir / "checkpoints" / "step-00000007")
    write_json(older / "state.json", vars(dataclasses.replace(state, step=3)))
    for path, data in ((run_dir, data_set), (run_dir, other), (older, other), (run_dir, moved)):
        evaluate(read_pretrained(path), data, batch_size=4)
    written = read_json(run_dir / RESULTS_NAME, dict[str, list])["evaluations"]
    assert [(each["step"], each["data_dir"]) for each in written] == [
        (12, str(other.directory)),
        (3, str(other.directory)),
        (12, str(moved.directory)),
    ]
    figures, are_held_out = read_results(run_dir, TrainingState(step=12), data_set.manifest)
    assert (figures["data_dir"], are_held_out) == (str(moved.directory), True)
    figures, are_held_out = read_results(run_dir, TrainingState(step=3), data_set.manifest)
    assert (figures["data_dir"], are_held_out) == (str(other.directory), False)


@pytest.mark.usefixtures("no_computation")
def test_a_checkpoint_of_another_kind_is_evaluated_and_nothing_written(tmp_path, run, data_set):
    run_dir = shutil.copytree(run[0], tmp_path / "run")
    (run_dir / RESULTS_NAME).unlink(missing_ok=True)
    of_run = read_pretrained(run_dir)
    foreign = dataclasses.replace(of_run, run=None)
    results = evaluate(foreign, data_set, batch_size=4)
    assert list(run_dir.glob("eval_results*")) == []
    assert {"step": 12, **results} == evaluate(of_run, data_set, batch_size=4)


@pytest.mark.usefixtures("no_computation")
def test_heads_that_are_missing_are_not_evaluated(run, data_set, caplog):
    pretrained = dataclasses.replace(read_pretrained(run[0]), run=None)

    def without(*prefixes):
        weights = pretrained.weights.items()
        kept = {name: values for name, values in weights if not name.startswith(prefixes)}
        return dataclasses.replace(pretrained, weights=kept)

    whole = evaluate(pretrained, data_set, batch_size=4)
    with caplog.at_level(logging.WARNING, logger="absl"):
        results = evaluate(without("cls/seq_", "bert/pooler"), data_set, batch_size=4)
    assert results == {n: value for n, value in whole.items() if not n.startswith("next_sentence")}
    assert "no results of next sentences" in caplog.text
    with pytest.raises(UserError, match="no head that predicts words: no cls/predictions"):
        evaluate(without("cls/"), data_set, batch_size=4)


def test_another_vocabulary_of_a_foreign_checkpoint_is_refused(run, data_set):
    pretrained = read_pretrained(run[0])
    tokens = ["another", *pretrained.tokenizer.tokens[1:]]
    tokenizer = dataclasses.replace(pretrained.tokenizer, tokens=tokens)
    foreign = dataclasses.replace(pretrained, run=None, tokenizer=tokenizer)
    with pytest.raises(UserError, match="id 0 is"):
        evaluate(foreign, data_set, batch_size=4)


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


@pytest.fixture
def read_at(tmp_path, data_set):
    """A function that reads the results of a state of a run on `data_set`."""
    return lambda state: read_results(tmp_path, state, data_set.manifest)


@pytest.fixture
def held_out(data_set):
    """What `evaluate` writes about the run's own data at step 20."""
    sha256 = sha256_of(data_set.directory / "manifest.json")
    return FROM_EVALUATE | {"data_dir": "data", "manifest_sha256": sha256}


OTHER = FROM_EVALUATE | {"masked_lm_loss": 9.0, "data_dir": "other", "manifest_sha256": "0" * 64}
OF_EARLIER_BUILD = FROM_EVALUATE | {"data_dir": None, "manifest_sha256": None}


def write_results(run_dir, *evaluations):
    write_json(run_dir / RESULTS_NAME, {"evaluations": list(evaluations)})


def test_results_are_those_of_the_requested_checkpoint(tmp_path, state_at, read_at, held_out):
    assert read_at(TrainingState(step=10)) is None
    last, first = state_at(20), state_at(10)
    from_training = {"step": 10, "masked_lm_loss": 6.0, "next_sentence_loss": 0.5}
    assert read_at(first) == (from_training, True)
    assert read_at(state_at(15)) is None
    write_results(tmp_path, held_out)
    assert read_at(last) == (held_out, True)
    assert read_at(first) == (from_training, True)


def test_results_on_other_data_do_not_hide_those_on_the_runs_own(
    tmp_path, state_at, read_at, held_out
):
    state = state_at(20)
    write_results(tmp_path, held_out, OTHER)
    assert read_at(state) == (held_out, True)
    write_results(tmp_path, OTHER)
    assert read_at(state)[0]["masked_lm_loss"] == 4.0  # of training
    (tmp_path / "metrics.jsonl").unlink()
    assert read_at(TrainingState(step=20)) == (OTHER, False)


@pytest.mark.parametrize(("step", "used"), [(10, True), (20, False)])
def test_results_of_changed_metrics_are_left_out(tmp_path, state_at, read_at, caplog, step, used):
    states = {step: state_at(step) for step in (10, 20)}
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("4.0", "1.0"))
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert (read_at(states[step]) is not None) == used
    assert [f"{path} was changed" in message for message in caplog.messages] == [True][used:]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", "\xff", '{"step": 20}', '{"step": true}'),
        json.dumps(FROM_EVALUATE | {"masked_lm_loss": "3.0"}),
        json.dumps(FROM_EVALUATE | {"perplexity": 2.0}),
    ],
)
def test_damaged_results_are_reported(tmp_path, state_at, read_at, content):
    (tmp_path / RESULTS_NAME).write_text(content, "latin1")
    with pytest.raises(UserError, match="clozemill evaluate") as raised:
        read_at(state_at(20))
    assert str(tmp_path / RESULTS_NAME) in str(raised.value)


def test_any_flipped_bit_in_the_results_is_noticed(tmp_path, state_at, read_at, held_out):
    path = tmp_path / RESULTS_NAME
    write_results(tmp_path, held_out)
    content = path.read_bytes()
    for i in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError):
            read_at(state_at(20))


@pytest.mark.usefixtures("no_computation")
@pytest.mark.parametrize("has_digest", [False, True])
def test_results_of_earlier_builds_are_of_an_unknown_data_set(
    tmp_path, run, data_set, read_at, has_digest
):
    if has_digest:
        write_json(tmp_path / RESULTS_NAME, FROM_EVALUATE)
    else:
        (tmp_path / RESULTS_NAME).write_text(json.dumps(FROM_EVALUATE))
    assert read_at(TrainingState(step=20)) == (OF_EARLIER_BUILD, False)
    run_dir = shutil.copytree(run[0], tmp_path / "run")
    shutil.copyfile(tmp_path / RESULTS_NAME, run_dir / RESULTS_NAME)
    evaluate(read_pretrained(run_dir), data_set, batch_size=4)
    first, second = read_json(run_dir / RESULTS_NAME, dict[str, list])["evaluations"]
    assert first == OF_EARLIER_BUILD
    assert second["step"] == 12


def test_damaged_results_are_reported_before_an_evaluation(tmp_path, run, data_set):
    run_dir = shutil.copytree(run[0], tmp_path / "run")
    (run_dir / RESULTS_NAME).write_text("{")
    with pytest.raises(UserError, match=f"{run_dir / RESULTS_NAME} is damaged.*; remove it"):
        evaluate(read_pretrained(run_dir), data_set, batch_size=4)


@pytest.mark.parametrize("name", ["bert_config.json", "vocab.txt", "manifest.json"])
def test_changed_file_of_the_run_is_reported(tmp_path, run, data_set, name):
    run_dir = shutil.copytree(run[0], tmp_path / "run")
    with (run_dir / name).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="was changed") as raised:
        evaluate(read_pretrained(run_dir), data_set, batch_size=4)
    assert str(run_dir / name) in str(raised.value)


def test_damaged_checkpoint_is_reported(tmp_path, run, data_set):
    run_dir = tmp_path / "run"
    shutil.copytree(run[0], run_dir)
    newest = run_dir / "checkpoints" / "step-00000012"
    (newest / "weights.npz").write_bytes(b"")
    with pytest.raises(UserError, match="damaged") as raised:
        evaluate(read_pretrained(run_dir), data_set, batch_size=4)
    assert str(newest) in str(raised.value)


def test_damaged_shard_is_reported(tmp_path, run, data_set):
    data_dir = tmp_path / "data"
    shutil.copytree(data_set.directory, data_dir)
    shard = data_dir / data_set.manifest.shards_of("eval")[0].name
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="record 1 of") as raised:
        evaluate(read_pretrained(run[0]), DataSet.read(data_dir), batch_size=4)
    assert str(shard) in str(raised.value)


def test_no_result_of_a_shard_with_a_wrong_sha256_is_written(tmp_path, run, data_set, swap_records):
    run_dir, data_dir = tmp_path / "run", tmp_path / "data"
    shutil.copytree(run[0], run_dir)
    (run_dir / RESULTS_NAME).unlink(missing_ok=True)
    shutil.copytree(data_set.directory, data_dir)
    shard = data_dir / data_set.manifest.shards_of("eval")[1].name
    swap_records(shard)
    with pytest.raises(UserError, match="SHA-256") as raised:
        evaluate(read_pretrained(run_dir), DataSet(data_dir, data_set.manifest), batch_size=4)
    assert str(shard) in str(raised.value)
    assert not (run_dir / RESULTS_NAME).exists()


def test_sums_of_batches_are_added_up():
    batches = [np.array([1, 2]), np.array([4])]
    sums = evaluation_sums(lambda batch: {"tokens": batch.sum(), "sequences": len(batch)}, batches)
    assert sums == {"tokens": 7, "sequences": 3}


def test_run_without_a_checkpoint_is_refused(tmp_path, run, data_set):
    run_dir = tmp_path / "run"
    shutil.copytree(run[0], run_dir, ignore=shutil.ignore_patterns("step-*"))
    with pytest.raises(UserError, match="no checkpoint") as raised:
        evaluate(read_pretrained(run_dir), data_set, batch_size=4)
    assert str(run_dir) in str(raised.value)


def test_data_set_without_eval_shards_is_refused(tmp_path, run, write_data_set):
    write_data_set(tmp_path, [("train", 0, 3)])
    with pytest.raises(UserError, match="eval_fraction") as raised:
        evaluate(read_pretrained(run[0]), DataSet.read(tmp_path), batch_size=4)
    assert str(tmp_path) in str(raised.value)


def test_data_with_another_vocabulary_is_refused(tmp_path, run, data_set):
    sha256 = hashlib.sha256(b"[PAD]\n").hexdigest()
    manifest = dataclasses.replace(data_set.manifest, vocab_sha256=sha256)
    with pytest.raises(UserError, match="vocabular") as raised:
        evaluate(read_pretrained(run[0]), DataSet(tmp_path, manifest), batch_size=4)
    assert str(run[0]) in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_instances_longer_than_the_model_reads_are_refused(tmp_path, run, write_data_set):
    write_data_set(tmp_path, [("eval", 0, 3)], max_seq_length=17)
    with pytest.raises(UserError, match="max_position_embeddings") as raised:
        evaluate(read_pretrained(run[0]), DataSet.read(tmp_path), batch_size=3)
    assert str(tmp_path) in str(raised.value)


def test_segment_ids_beyond_the_table_are_refused(run, data_set):
    pretrained = read_pretrained(run[0])
    config = dataclasses.replace(pretrained.config, type_vocab_size=1)
    with pytest.raises(UserError, match="type_vocab_size is 1, but"):
        evaluate(dataclasses.replace(pretrained, config=config), data_set, batch_size=4)


def with_pairs(data_set, pairs):
    options, version = {**data_set.manifest.options, "sentence_pairs": pairs}, 2
    manifest = dataclasses.replace(data_set.manifest, options=options, format_version=version)
    return dataclasses.replace(data_set, manifest=manifest)


def as_mixture(data_set, **shards_of_corpora):
    """The data set as one of a mixture, whose corpora have some of its eval shards, by number."""
    names = [shard.name for shard in data_set.manifest.shards_of("eval")]
    corpora = {
        name: {"eval_shards": [names[number] for number in numbers], "shares_reached": [0.5]}
        for name, numbers in shards_of_corpora.items()
    }
    manifest = dataclasses.replace(
        data_set.manifest,
        options={**data_set.manifest.options, "mixture": {"temperature": [0.7]}},
        statistics={**data_set.manifest.statistics, "corpora": corpora},
        format_version=2,
    )
    return dataclasses.replace(data_set, manifest=manifest)


def only(data_set, shard):
    """The data set with one of its eval shards."""
    shards = [*data_set.manifest.shards_of("train"), data_set.manifest.shards_of("eval")[shard]]
    manifest = dataclasses.replace(data_set.manifest, shards=shards)
    return dataclasses.replace(data_set, manifest=manifest)


def test_each_corpus_of_a_mixture_has_its_own_results(run, data_set):
    mixture = as_mixture(data_set, german=[1], empty=[], english=[0])
    assert not list(mixture.manifest.contradictions())
    foreign = dataclasses.replace(read_pretrained(run[0]), run=None)
    results = evaluate(foreign, mixture, batch_size=3)
    corpora = results.pop("corpora")
    assert list(corpora) == ["german", "english"]
    for name, shard in (("english", 0), ("german", 1)):
        by_hand = results_by_hand(run[1], only(data_set, shard))
        assert corpora[name] == pytest.approx(by_hand, rel=1e-4)
    together = results_by_hand(run[1], data_set)
    assert {name: results[name] for name in together} == pytest.approx(together, rel=1e-4)


@pytest.mark.usefixtures("no_computation")
def test_results_of_corpora_are_written_where_there_are_any(run, data_set, tmp_path):
    run_dir = shutil.copytree(run[0], tmp_path / "run")
    mixture = as_mixture(data_set, german=[1], english=[0])
    corpora = evaluate(read_pretrained(run_dir), mixture, batch_size=3)["corpora"]
    evaluate(read_pretrained(run_dir), data_set, batch_size=3)
    of_mixture, of_one = read_json(run_dir / RESULTS_NAME, dict[str, list])["evaluations"][-2:]
    assert of_mixture["corpora"] == corpora
    assert "corpora" not in of_one
    found, are_held_out = read_results(run_dir, TrainingState(step=12), mixture.manifest)
    assert (found["corpora"], are_held_out) == (corpora, True)


@pytest.mark.usefixtures("no_computation")
def test_figures_of_pairs_need_the_same_pairs(run, data_set, caplog):
    pretrained = dataclasses.replace(read_pretrained(run[0]), run=None)
    with caplog.at_level(logging.INFO, logger="absl"):
        results = evaluate(pretrained, with_pairs(data_set, "none"), batch_size=4)
    figures = ["masked_lm_loss", "masked_lm_accuracy"]
    assert list(results) == [*figures, "data_dir", "manifest_sha256"]
    assert "no results of pairs: " in caplog.text
    assert "trained with --sentence_pairs=next" in caplog.text
    order = dataclasses.replace(pretrained.config, sentence_pairs="order")
    of_order = dataclasses.replace(pretrained, config=order)
    assert list(evaluate(of_order, data_set, batch_size=4))[:2] == figures
    assert len(evaluate(of_order, with_pairs(data_set, "order"), batch_size=4)) == 6


@pytest.mark.no_backend
def test_a_run_without_pairs_has_the_figures_of_masked_words_on_any_data(
    tmp_path, run, data_set, shallow_config, write_run
):
    alone = dataclasses.replace(shallow_config, sentence_pairs="none")
    model = write_run(tmp_path / "alone", alone, step=12)
    model.set_named_weights({name: value.numpy() for name, value in run[1].named_weights().items()})
    optimizer = AdamW(1e-3)
    optimizer.build(model.trainable_variables)
    state = read_state(latest_checkpoint(tmp_path / "alone"))
    shutil.rmtree(latest_checkpoint(tmp_path / "alone"))
    save_checkpoint(tmp_path / "alone", Learner(model, optimizer), state, keep=1)
    results = evaluate(read_pretrained(tmp_path / "alone"), data_set, batch_size=4)
    expected = results_by_hand(run[1], data_set)
    for name in ("masked_lm_loss", "masked_lm_accuracy"):
        assert results[name] == pytest.approx(expected[name], rel=1e-4)
    assert not [name for name in results if "next_sentence" in name]
    figures, are_held_out = read_results(tmp_path / "alone", state, data_set.manifest)
    assert are_held_out
    assert (figures["next_sentence_loss"], figures["next_sentence_accuracy"]) == (None, None)
