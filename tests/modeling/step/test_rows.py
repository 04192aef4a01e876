"""Training on packed rows is training on their sequences."""

import dataclasses

import keras
import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.losses import losses_and_accuracies, pretraining_sums, total_loss
from modeling.step.backend import TrainStep, eval_step
from modeling.step.learner import new_learner
from modeling.training_options import OptimizerName, Precision, TrainingOptions
from pipeline.records import RowLimits
from pipeline.rows import pack
from pipeline.sentence_pairs import SentencePairs

NUM_STEPS, NUM_ROWS = 20, 4
SIZES = [2, 3, 1, 2]
LIMITS = RowLimits(tokens=48, predictions=9, sequences=3)


@pytest.fixture(scope="module")
def no_dropout(shallow_config):
    return dataclasses.replace(
        shallow_config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


@pytest.fixture(scope="module")
def batches(make_batch):
    """Batches of rows, and of the same sequences unpacked."""
    count = sum(SIZES)
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(NUM_STEPS):
        sequences = make_batch(count, first_number=number * count)
        sizes = rng.permutation(SIZES)
        rows = pack(sequences, sizes, LIMITS, padding_id=0)
        rows = {
            name: values if values.dtype == np.float32 else values.astype(np.int32)
            for name, values in rows.items()
        }
        pairs.append((rows, sequences))
    return pairs


def curve(config, batches, **options):
    """The results of one step after another."""
    step = TrainStep(
        new_learner(
            config,
            TrainingOptions(
                train_batch_size=NUM_ROWS, num_train_steps=NUM_STEPS, learning_rate=1e-2, **options
            ),
        )
    )
    steps = [step(batch) for batch in batches]
    return [{name: float(value) for name, value in results.items()} for results in steps]


def losses(results):
    return [float(total_loss(each)) for each in results]


@pytest.fixture(scope="module")
def unpacked(no_dropout, batches):
    return curve(no_dropout, [sequences for _, sequences in batches])


def test_a_run_on_rows_learns_what_one_on_their_sequences_does(no_dropout, batches, unpacked):
    packed = curve(no_dropout, [rows for rows, _ in batches])
    np.testing.assert_allclose(losses(packed), losses(unpacked), rtol=0, atol=1e-5)
    for one, other in zip(packed, unpacked, strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        for name in ("sequences", "tokens", "masked_lm_weights", "next_sentence_correct"):
            assert one[name] == other[name]


def test_rows_can_be_accumulated(no_dropout, batches, unpacked):
    packed = curve(no_dropout, [rows for rows, _ in batches], gradient_accumulation_steps=2)
    np.testing.assert_allclose(losses(packed), losses(unpacked), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_lamb_learns_the_same_from_rows(no_dropout, batches):
    few = batches[:5]
    packed = curve(no_dropout, [rows for rows, _ in few], optimizer=OptimizerName.LAMB)
    unpacked = curve(no_dropout, [each for _, each in few], optimizer=OptimizerName.LAMB)
    np.testing.assert_allclose(losses(packed), losses(unpacked), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_recomputed_activations_of_rows_are_the_same_with_dropout(shallow_config, batches):
    few = [rows for rows, _ in batches[:3]]
    expected = curve(shallow_config, few)
    again = curve(shallow_config, few, recompute_activations=True)
    np.testing.assert_allclose(losses(again), losses(expected), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.BFLOAT16, 0.1), (Precision.FLOAT16, 0.01)]
)
def test_short_numbers_learn_from_rows(precision, tolerance, no_dropout, batches, unpacked):
    packed = curve(no_dropout, [rows for rows, _ in batches], precision=precision)
    np.testing.assert_allclose(losses(packed), losses(unpacked), rtol=0, atol=tolerance)


def test_evaluation_of_rows_counts_sequences(no_dropout, batches):
    learner = new_learner(no_dropout, TrainingOptions())
    figures = []
    for batch in batches[0]:
        sums = {name: float(value) for name, value in eval_step(learner.model)(batch).items()}
        assert sums["sequences"] == sum(SIZES)
        figures.append(losses_and_accuracies(sums))
    rows, sequences = figures
    for name, value in rows.items():
        assert value == pytest.approx(sequences[name], abs=1e-5)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="JAX compiles each operation alone: 8 seconds"
)
def test_rows_without_pairs_have_the_sums_of_their_sequences(no_dropout, batches):
    model = BertForPreTraining(dataclasses.replace(no_dropout, sentence_pairs=SentencePairs.NONE))
    packed, unpacked = (
        {name: float(value) for name, value in pretraining_sums(model(batch), batch).items()}
        for batch in batches[0]
    )
    assert packed == pytest.approx(unpacked, rel=1e-5)
    assert packed.keys() == {"masked_lm_nll", "masked_lm_correct"}
