import keras
import ml_dtypes
import numpy as np
import pytest

from modeling.losses import (
    SUMS,
    batch_totals,
    losses_and_accuracies,
    masked_lm_loss,
    next_sentence_loss,
    pretraining_sums,
    total_loss,
)

TOTALS = ("masked_lm_weights", "sequences", "tokens")


def random_outputs(batch, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    size, predictions = batch["masked_lm_ids"].shape
    return {
        "masked_lm_logits": (scale * rng.standard_normal((size, predictions, 50))).astype("f4"),
        "next_sentence_logits": (scale * rng.standard_normal((size, 2))).astype("f4"),
    }


def as_floats(sums):
    return {name: float(value) for name, value in sums.items()}


def totals_and_sums(outputs, batch):
    return as_floats(batch_totals(batch)) | as_floats(pretraining_sums(outputs, batch))


def nll_by_hand(logits, label):
    logits = np.asarray(logits, np.float64)
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])


def by_hand(outputs, batch):
    sums = dict.fromkeys((*TOTALS, *SUMS), 0.0)
    for i, next_sentence_label in enumerate(batch["next_sentence_labels"][:, 0]):
        logits = outputs["next_sentence_logits"][i]
        sums["next_sentence_nll"] += nll_by_hand(logits, next_sentence_label)
        sums["next_sentence_correct"] += int(np.argmax(logits)) == next_sentence_label
        sums["sequences"] += 1
        sums["tokens"] += int(batch["input_mask"][i].sum())
        for p, weight in enumerate(batch["masked_lm_weights"][i]):
            if weight:
                logits, label = outputs["masked_lm_logits"][i, p], batch["masked_lm_ids"][i, p]
                sums["masked_lm_nll"] += nll_by_hand(logits, label)
                sums["masked_lm_correct"] += int(np.argmax(logits)) == label
                sums["masked_lm_weights"] += 1
    return sums


@pytest.fixture(scope="module")
def batch(make_batch):
    """A batch in which some predictions are padding."""
    return make_batch(16)


@pytest.fixture(scope="module")
def outputs(batch):
    """Random outputs, in which some labels have the largest logit."""
    outputs = random_outputs(batch)
    for i in range(0, 16, 3):
        outputs["masked_lm_logits"][i, 0, batch["masked_lm_ids"][i, 0]] = 20.0
    return outputs


def test_totals_and_sums_equal_those_by_hand(outputs, batch):
    assert (batch["masked_lm_weights"] == 0).any()
    expected = by_hand(outputs, batch)
    assert 0 < expected["masked_lm_correct"] < expected["masked_lm_weights"]
    assert 0 < expected["next_sentence_correct"] < expected["sequences"]
    assert as_floats(batch_totals(batch)) == {name: expected.pop(name) for name in TOTALS}
    assert as_floats(pretraining_sums(outputs, batch)) == pytest.approx(expected, rel=1e-5)


def split(outputs, batch):
    """Two parts of unequal size."""
    for part in (slice(0, 5), slice(5, 16)):
        yield tuple({name: x[part] for name, x in arrays.items()} for arrays in (outputs, batch))


def test_totals_and_sums_of_parts_add_up_to_those_of_the_whole(outputs, batch):
    whole = totals_and_sums(outputs, batch)
    first, second = (totals_and_sums(*part) for part in split(outputs, batch))
    assert {name: first[name] + second[name] for name in whole} == pytest.approx(whole, rel=1e-5)


def test_sums_of_parts_with_totals_of_the_whole_give_shares_of_the_loss(outputs, batch):
    whole = totals_and_sums(outputs, batch)
    totals = as_floats(batch_totals(batch))
    shares = [
        total_loss(as_floats(pretraining_sums(*part)) | totals) for part in split(outputs, batch)
    ]
    assert sum(shares) == pytest.approx(total_loss(whole), rel=1e-5)


def test_padding_predictions_have_no_effect(outputs, batch):
    padding = batch["masked_lm_weights"] == 0
    other_outputs = {name: values.copy() for name, values in outputs.items()}
    other_outputs["masked_lm_logits"][padding, 7] = 50.0
    other_batch = batch | {"masked_lm_ids": np.where(padding, 7, batch["masked_lm_ids"])}
    expected = totals_and_sums(outputs, batch)
    assert totals_and_sums(other_outputs, other_batch) == expected
    assert totals_and_sums(outputs, other_batch) == expected


def test_losses_and_accuracies_are_means_of_the_sums(outputs, batch):
    sums = by_hand(outputs, batch)
    expected = {
        "masked_lm_loss": sums["masked_lm_nll"] / (sums["masked_lm_weights"] + 1e-5),
        "next_sentence_loss": sums["next_sentence_nll"] / 16,
        "masked_lm_accuracy": sums["masked_lm_correct"] / (sums["masked_lm_weights"] + 1e-5),
        "next_sentence_accuracy": sums["next_sentence_correct"] / 16,
    }
    assert losses_and_accuracies(sums) == pytest.approx(expected, rel=1e-9)
    assert masked_lm_loss(sums) == pytest.approx(expected["masked_lm_loss"])
    assert next_sentence_loss(sums) == pytest.approx(expected["next_sentence_loss"])
    assert total_loss(sums) == pytest.approx(
        expected["masked_lm_loss"] + expected["next_sentence_loss"]
    )


def test_a_batch_with_only_padding_has_no_masked_lm_loss(outputs, batch):
    unmasked = batch | {"masked_lm_weights": np.zeros_like(batch["masked_lm_weights"])}
    sums = totals_and_sums(outputs, unmasked)
    assert masked_lm_loss(sums) == 0.0
    assert losses_and_accuracies(sums).keys() == {"next_sentence_loss", "next_sentence_accuracy"}


def test_large_logits_give_finite_losses(batch):
    sums = as_floats(pretraining_sums(random_outputs(batch, scale=1e4), batch))
    assert np.isfinite(list(sums.values())).all()


def test_of_equal_logits_the_first_counts_as_the_largest(batch):
    size, predictions = batch["masked_lm_ids"].shape
    few_values = np.random.default_rng(0).integers(0, 4, (size, predictions, 50)).astype("f4")
    outputs = {**random_outputs(batch), "masked_lm_logits": few_values}
    for labels in (few_values.argmax(-1), np.full((size, predictions), 49)):
        labeled = {**batch, "masked_lm_ids": labels.astype(np.int32)}
        assert totals_and_sums(outputs, labeled) == pytest.approx(by_hand(outputs, labeled), 1e-6)


def test_logits_that_are_no_numbers_are_no_correct_predictions(batch):
    outputs = random_outputs(batch)
    outputs["masked_lm_logits"][:] = np.nan
    assert float(pretraining_sums(outputs, batch)["masked_lm_correct"]) == 0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_logits_are_summed_in_float32(outputs, batch, dtype):
    narrowed = {name: values.astype(dtype) for name, values in outputs.items()}
    widened = {name: values.astype(np.float32) for name, values in narrowed.items()}
    sums = pretraining_sums(narrowed, batch)
    assert {keras.backend.standardize_dtype(value.dtype) for value in sums.values()} == {"float32"}
    assert as_floats(sums) == as_floats(pretraining_sums(widened, batch))


def test_totals_are_float32(batch):
    totals = batch_totals(batch)
    assert {keras.backend.standardize_dtype(x.dtype) for x in totals.values()} == {"float32"}


def test_without_pairs_the_loss_is_that_of_masked_words(outputs, batch):
    whole = totals_and_sums(outputs, batch)
    alone = totals_and_sums({"masked_lm_logits": outputs["masked_lm_logits"]}, batch)
    assert alone == {name: whole[name] for name in whole if not name.startswith("next_sentence")}
    assert total_loss(alone) == masked_lm_loss(whole)
    figures = losses_and_accuracies(whole)
    assert losses_and_accuracies(alone) == {
        name: figures[name] for name in ("masked_lm_loss", "masked_lm_accuracy")
    }
