import dataclasses
import json
import re
import shutil

import pytest

from modeling.checkpoints.pretrained import Pretrained, read_average, read_pretrained
from modeling.checkpoints.tokenizer_settings import TokenizerSettings
from modeling.export.model_card import model_card
from modeling.training.metrics import MetricsWriter
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend

yaml = pytest.importorskip("yaml")

STEP = 3
RESULTS = {
    "masked_lm_loss": 2.0,
    "masked_lm_accuracy": 0.5123,
    "next_sentence_loss": 0.25,
    "next_sentence_accuracy": 0.875,
}
TOLD_RESULTS = {
    "masked-LM loss": "2.0000 nats, a perplexity of 7.39",
    "masked-LM accuracy": "51.23%",
    "next-sentence loss": "0.2500 nats",
    "next-sentence accuracy": "87.50%",
}
# Of another step, or of another evaluation of the same.
OTHER_RESULTS = {name: value / 2 for name, value in RESULTS.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, config, write_run):
    """A run of two checkpoints, not to be changed."""
    run_dir = tmp_path_factory.mktemp("run")
    write_run(run_dir, config, step=STEP, earlier_steps=[STEP - 1])
    return run_dir


@pytest.fixture(scope="module")
def pretrained(run):
    return read_pretrained(run)


@pytest.fixture
def own_run(tmp_path, run):
    """A copy of the run, to be changed."""
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="module")
def converted(pretrained):
    """Of which nobody knows how it was trained."""
    return dataclasses.replace(pretrained, run=None)


def card_of(pretrained: Pretrained) -> str:
    return model_card(pretrained, pretrained.tokenizer)


def tables(card):
    """What the tables tell: each a header that has no words, a line, and rows without a gap."""
    found = re.findall(r"\n\n\| \| \|\n\|---\|---\|\n((?:\|.*\|\n)+)\n", card)
    assert len(found) == card.count("|---|")
    facts = [dict(re.findall(r"\| (.+?) \| (.+) \|\n", table)) for table in found]
    assert [len(table) for table in facts] == [table.count("\n") for table in found]
    return facts


def without_head(pretrained, prefix):
    weights = {
        name: values for name, values in pretrained.weights.items() if not name.startswith(prefix)
    }
    return dataclasses.replace(pretrained, weights=weights)


def write_results(run_dir, step, results):
    (run_dir / "eval_results.json").write_text(json.dumps({"step": step, **results}))


def write_metrics(run_dir, *lines):
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluation(step, results):
    return {"step": step, **{f"eval_{name}": value for name, value in results.items()}}


def results_told(run_dir):
    card = card_of(read_pretrained(run_dir))
    told = tables(card)
    assert len(told) in (2, 3)
    assert ("It was not evaluated." in card) == (len(told) == 2)
    assert ("documents held out for evaluation:" in card) == (len(told) == 3)
    return told[2] if len(told) == 3 else None


def test_facts_of_the_manifest_are_told(pretrained, data_set):
    told = tables(card_of(pretrained))[0]
    assert told == {
        "documents": "60",
        "sentences": "928",
        "tokens": "20,012, 0.125% of them [UNK]",
        "text": "0.1 MB",
        "training instances": "26, in 2 passes over the text",
        "tokens of an instance": "at most 16",
        "masked": "15% of the tokens",
        "whole words masked": "yes",
        "word segmenter": "none",
        "SHA-256 of vocab.txt": f"`{data_set.manifest.vocab_sha256}`",
    }


def test_facts_are_those_of_its_own_manifest(own_run, data_set):
    manifest = data_set.manifest
    options = {
        "dupe_factor": 5,
        "masked_lm_prob": 0.2,
        "do_whole_word_mask": False,
        "word_segmenter": "jieba",
    }
    corpus = {**manifest.statistics["corpus"], "documents_tokenized": 12345, "input_bytes": 5e9}
    dataclasses.replace(manifest, options=options, statistics={"corpus": corpus}).write(own_run)
    told = tables(card_of(read_pretrained(own_run)))[0]
    assert told["training instances"] == "26, in 5 passes over the text"
    assert told["masked"] == "20% of the tokens"
    assert told["whole words masked"] == "no"
    assert told["word segmenter"] == "jieba"
    assert told["documents"] == "12,345"
    assert told["text"] == "5,000.0 MB"


def test_training_is_told(pretrained):
    assert tables(card_of(pretrained))[1] == {
        "steps": "3 of 100,000 planned",
        "sequences of a step": "32",
        "optimizer": "adamw, weight decay 0.01",
        "learning rate": "0.0001, reached in 10,000 steps, then falling to 0",
        "precision": "float32",
        "seed": "12345",
    }


def test_training_is_told_as_it_was(pretrained):
    options = pretrained.run.state.options | {
        "num_train_steps": 4000,
        "num_warmup_steps": 400,
        "train_batch_size": 2048,
        "optimizer": "lamb",
        "weight_decay_rate": 0.1,
        "learning_rate": 0.005,
        "precision": "bfloat16",
        "random_seed": 7,
    }
    state = dataclasses.replace(
        pretrained.run.state,
        step=1234,
        options=options,
        started_from="step-00090000 of runs/phase1",
    )
    run = dataclasses.replace(pretrained.run, state=state)
    assert tables(card_of(dataclasses.replace(pretrained, run=run)))[1] == {
        "started from": "step-00090000 of runs/phase1",
        "steps": "1,234 of 4,000 planned",
        "sequences of a step": "2,048",
        "optimizer": "lamb, weight decay 0.1",
        "learning rate": "0.005, reached in 400 steps, then falling to 0",
        "precision": "bfloat16",
        "seed": "7",
    }


def test_results_of_evaluate_are_told(own_run):
    write_results(own_run, STEP, RESULTS)
    assert results_told(own_run) == TOLD_RESULTS


def test_results_of_evaluate_go_before_those_of_the_training(own_run):
    write_results(own_run, STEP, RESULTS)
    write_metrics(own_run, evaluation(STEP, OTHER_RESULTS))
    assert results_told(own_run) == TOLD_RESULTS


def test_results_of_another_step_are_not_used(own_run):
    write_results(own_run, STEP - 1, OTHER_RESULTS)
    write_metrics(
        own_run, evaluation(STEP - 1, OTHER_RESULTS), {"step": STEP, "masked_lm_loss": 1.0}
    )
    assert results_told(own_run) is None


def test_where_evaluate_saw_another_step_the_training_tells(own_run):
    write_results(own_run, STEP - 1, OTHER_RESULTS)
    write_metrics(
        own_run,
        evaluation(STEP - 1, OTHER_RESULTS),
        {"step": STEP, **OTHER_RESULTS, "learning_rate": 1e-4},
        evaluation(STEP, RESULTS),
    )
    assert results_told(own_run) == TOLD_RESULTS


def test_an_earlier_checkpoint_has_its_own_results(own_run):
    write_results(own_run, STEP, OTHER_RESULTS)
    write_metrics(own_run, evaluation(STEP - 1, RESULTS), evaluation(STEP, OTHER_RESULTS))
    card = card_of(read_pretrained(own_run / "checkpoints" / f"step-{STEP - 1:08d}"))
    assert tables(card)[1]["steps"].startswith("2 of ")
    assert tables(card)[2] == TOLD_RESULTS


def test_what_the_training_writes_is_understood(own_run):
    sums = {
        "masked_lm_nll": 20.0,
        "masked_lm_correct": 5.123,
        "masked_lm_weights": 10.0,
        "next_sentence_nll": 2.0,
        "next_sentence_correct": 7.0,
        "sequences": 8.0,
    }
    MetricsWriter(own_run, STEP, 100, 8, 1).write_evaluation(STEP, sums)
    assert results_told(own_run) == TOLD_RESULTS


def test_a_run_without_results_says_so(run):
    assert results_told(run) is None


def test_an_average_has_no_results_and_says_what_it_is(own_run):
    write_results(own_run, STEP, RESULTS)
    write_metrics(own_run, evaluation(STEP, RESULTS))
    card = card_of(read_average(own_run, 2))
    data, training = tables(card)
    assert data["documents"] == "60"
    assert training["weights"] == "the mean of the 2 newest checkpoints"
    assert "It was not evaluated." in card


def test_of_a_converted_model_nothing_is_made_up(converted):
    card = card_of(converted)
    assert tables(card) == []
    assert "converted from another format" in card
    assert "evaluat" not in card
    assert "Clozemill trained it" not in card


@pytest.mark.parametrize("case", ["run", "converted"])
@pytest.mark.parametrize(
    ("missing", "task", "told"),
    [
        ("no head", "fill-mask", "guess masked words and whether one text follows another;"),
        ("cls/seq_relationship/", "fill-mask", "guess masked words; for any"),
        ("cls/predictions/", "feature-extraction", "The encoder alone"),
        ("cls/", "feature-extraction", "The encoder alone"),
    ],
)
def test_what_it_can_do_is_told(pretrained, converted, case, missing, task, told):
    card = card_of(without_head({"run": pretrained, "converted": converted}[case], missing))
    _, front, body = card.split("---\n", 2)
    assert card.startswith("---\n")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["bert", "clozemill"],
    }
    assert told in body
    assert ('pipeline("fill-mask"' in body) == (task == "fill-mask")
    assert ("AutoModel.from_pretrained" in body) == (task != "fill-mask")
    assert "AutoModelForSequenceClassification.from_pretrained" in body
    assert "{{" not in card
    assert "{%" not in card
    assert "\n\n\n" not in card
    assert card.endswith(".\n")
    headings = re.findall(r"\n\n(#+ .*)\n\n", card)
    assert headings[1:] == ["## How to use it", "## How it was trained", "## Limits"]


def test_size_is_that_of_what_is_there(pretrained):
    h, vocabulary = pretrained.config.hidden_size, pretrained.config.vocab_size
    whole = sum(values.size for values in pretrained.weights.values())
    heads = vocabulary + h * h + 3 * h + 2 * h + 2
    assert f"# A BERT of {whole:,} parameters\n" in card_of(pretrained)
    encoder = without_head(pretrained, "cls/")
    assert f"# A BERT of {whole - heads:,} parameters\n" in card_of(encoder)
    assert (
        "An encoder of 2 layers of 16 with 2 heads, a vocabulary of 50, sequences of up to 16 tokens."
    ) in card_of(pretrained)


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents", "told"),
    [
        (True, None, "Text is lower-cased, accents are stripped."),
        (False, None, "Text is not lower-cased, accents are kept."),
        (True, False, "Text is lower-cased, accents are kept."),
        (False, True, "Text is not lower-cased, accents are stripped."),
    ],
)
def test_what_is_done_to_text_is_told(converted, do_lower_case, strip_accents, told):
    own = converted.tokenizer
    tokenizer = TokenizerSettings(own.vocabulary, own.tokens, do_lower_case, strip_accents)
    assert told in model_card(converted, tokenizer)


def test_a_run_without_a_manifest_is_told(own_run):
    (own_run / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json") as raised:
        card_of(read_pretrained(own_run))
    assert str(own_run) in str(raised.value)
