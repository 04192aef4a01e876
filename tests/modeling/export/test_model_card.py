import dataclasses
import hashlib
import json
import re
import shutil

import pytest

from modeling.checkpoints.pretrained import Pretrained, read_average, read_pretrained
from modeling.checkpoints.run_checkpoints import (
    Extension,
    FileStart,
    TrainingState,
    latest_checkpoint,
    list_checkpoints,
    read_state,
)
from modeling.checkpoints.tokenizer_settings import TokenizerSettings
from modeling.export.model_card import model_card
from modeling.training.metrics import MetricsWriter
from modeling.training.workload import BatchSizes
from modeling.training_options import NewEmbeddings, TrainingOptions
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.json_files import write_json

pytestmark = pytest.mark.no_backend

yaml = pytest.importorskip("yaml")

STEP = 3
RESULTS = {
    "masked_lm_loss": 2.0,
    "masked_lm_accuracy": 0.5123,
    "next_sentence_loss": 0.25,
    "next_sentence_accuracy": 0.875,
}
REPORTED_RESULTS = {
    "masked-LM loss": "2.0000 nats, a perplexity of 7.39",
    "masked-LM accuracy": "51.23%",
    "next-sentence loss": "0.2500 nats",
    "next-sentence accuracy": "87.50%",
}
# Results of another step, or of another evaluation of the same step.
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
    """A converted model, whose training is unknown."""
    return dataclasses.replace(pretrained, run=None)


def card_of(pretrained: Pretrained) -> str:
    return model_card(pretrained, pretrained.tokenizer)


def tables(card):
    """The facts in each table. A table is an empty header, a rule, and rows without a gap."""
    found = re.findall(r"\n\n\| \| \|\n\|---\|---\|\n((?:\|.*\|\n)+)\n", card)
    assert len(found) == card.count("|---|")
    facts = [dict(re.findall(r"\| (.+?) \| `(.+)` \|\n", table)) for table in found]
    assert [len(table) for table in facts] == [table.count("\n") for table in found]
    return facts


def without_head(pretrained, prefix):
    weights = {
        name: values for name, values in pretrained.weights.items() if not name.startswith(prefix)
    }
    return dataclasses.replace(pretrained, weights=weights)


def write_results(run_dir, step, results, on=None):
    """Writes results on the run's own data, or on another data set."""
    of_data = {
        "data_dir": on or "data",
        "manifest_sha256": "1" * 64 if on else sha256_of(run_dir / "manifest.json"),
    }
    write_json(
        run_dir / "eval_results.json", {"evaluations": [{"step": step, **results, **of_data}]}
    )


def write_metrics(run_dir, *lines):
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for checkpoint in list_checkpoints(run_dir):
        change_state(checkpoint, metrics=start_of(run_dir / "metrics.jsonl"))


def start_of(file):
    content = file.read_bytes()
    return FileStart(len(content), hashlib.sha256(content).hexdigest())


def change_state(checkpoint, **changes):
    """Saves another state in a checkpoint."""
    state = dataclasses.replace(read_state(checkpoint), **changes)
    write_json(checkpoint / "state.json", vars(state))


def evaluation(step, results):
    return {"step": step, **{f"eval_{name}": value for name, value in results.items()}}


def reported_results(run_dir):
    card = card_of(read_pretrained(run_dir))
    found = tables(card)
    assert len(found) in (2, 3)
    assert ("It was not evaluated." in card) == (len(found) == 2)
    if len(found) == 2:
        return None
    results = found[2]
    own = "that of the training", "data"
    is_held_out = results["data set"] in own
    assert ("Results on documents held out for evaluation:" in card) == is_held_out
    assert ("Results on another data set" in card) == (not is_held_out)
    if is_held_out:
        sha256 = results.pop("SHA-256 of its manifest.json", None)
        is_named = results.pop("data set") == "data"
        assert sha256 == (sha256_of(run_dir / "manifest.json") if is_named else None)
    return results


def test_facts_of_the_manifest_are_reported(pretrained, data_set):
    facts = tables(card_of(pretrained))[0]
    assert facts == {
        "documents": "60",
        "sentences": "928",
        "tokens": "20,012, 0.125% of them [UNK]",
        "text": "0.1 MB",
        "training instances": "26, in 2 passes over the text",
        "tokens per instance": "at most 16",
        "sentence pairs": "next sentences, or random ones",
        "masked": "15% of the tokens",
        "whole words masked": "yes",
        "word segmenter": "none",
        "SHA-256 of vocab.txt": data_set.manifest.vocab_sha256,
    }


def test_facts_come_from_the_runs_own_manifest(own_run, data_set):
    manifest = data_set.manifest
    options = {
        "dupe_factor": 5,
        "masked_lm_prob": 0.2,
        "do_whole_word_mask": False,
        "word_segmenter": "jieba",
    }
    corpus = {**manifest.statistics["corpus"], "documents_tokenized": 12345, "input_bytes": 5e9}
    dataclasses.replace(manifest, options=options, statistics={"corpus": corpus}).write(own_run)
    change_state(latest_checkpoint(own_run), sha256={})
    facts = tables(card_of(read_pretrained(own_run)))[0]
    assert facts["training instances"] == "26, in 5 passes over the text"
    assert facts["masked"] == "20% of the tokens"
    assert facts["whole words masked"] == "no"
    assert facts["word segmenter"] == "jieba"
    assert facts["documents"] == "12,345"
    assert facts["text"] == "5,000.0 MB"


def test_facts_of_adopted_records_are_those_that_they_show(own_run, data_set):
    statistics = {"corpus": {"share_unknown": 0.01}, "train": {"share_masked": 0.149}}
    dataclasses.replace(
        data_set.manifest, options={"feature_names": "original"}, statistics=statistics
    ).write(own_run)
    change_state(latest_checkpoint(own_run), sha256={})
    assert tables(card_of(read_pretrained(own_run)))[0] == {
        "training instances": "26, made by other software",
        "tokens per instance": "at most 16",
        "masked": "14.9% of the tokens",
        "unknown": "1.000% of the tokens are [UNK]",
        "SHA-256 of vocab.txt": data_set.manifest.vocab_sha256,
    }


def test_packed_rows_are_no_longer_sequences(own_run, data_set):
    rows = {"packed_row_length": 64, "max_predictions_per_row": 10, "max_sequences_per_row": 4}
    manifest = data_set.manifest
    counts = {"sequences": 50, "attended_pairs": 5000}
    dataclasses.replace(
        manifest,
        options={**manifest.options, **rows},
        statistics={**manifest.statistics, "train": counts, "eval": counts},
        format_version=2,
    ).write(own_run)
    change_state(latest_checkpoint(own_run), sha256={})
    facts = tables(card_of(read_pretrained(own_run)))[0]
    assert facts["tokens per sequence"] == "at most 16"
    assert facts["instances"] == "rows of 64 tokens, into which sequences are packed"
    assert "tokens per instance" not in facts


def test_training_is_reported(pretrained):
    assert tables(card_of(pretrained))[1] == {
        "steps": "3 of 100,000 planned",
        "sequences per step": "32",
        "optimizer": "adamw, weight decay 0.01",
        "learning rate": "0.0001, reached after 10,000 steps, then falling to 0",
        "precision": "float32",
        "seed": "12345",
    }


def test_training_is_reported_with_its_own_options(pretrained):
    options = pretrained.run.state.options | {
        "num_train_steps": 4000,
        "num_warmup_steps": 400,
        "train_batch_size": 2048,
        "batch_size_warmup_steps": 600,
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
        branched_from="step-00001000 of runs/stable",
    )
    run = dataclasses.replace(pretrained.run, state=state)
    assert tables(card_of(dataclasses.replace(pretrained, run=run)))[1] == {
        "started from": "step-00090000 of runs/phase1",
        "branched from": "step-00001000 of runs/stable",
        "steps": "1,234 of 4,000 planned",
        "sequences per step": "2,048, growing from a sixth of that over the first 600 steps",
        "optimizer": "lamb, weight decay 0.1",
        "learning rate": "0.005, reached after 400 steps, then falling to 0",
        "precision": "bfloat16",
        "seed": "7",
    }


def test_new_words_and_positions_are_reported(pretrained):
    extension = Extension([(5, 7), (40, 1_041)], 1_003, 2, NewEmbeddings.MEAN, 8)
    options = pretrained.run.state.options | {"freeze_old_steps": 1_000}
    state = dataclasses.replace(pretrained.run.state, options=options, extension=extension)
    run = dataclasses.replace(pretrained.run, state=state)
    training = tables(card_of(dataclasses.replace(pretrained, run=run)))[1]
    assert training["new words"] == (
        "1,003, of which 2 in place of [unused…] tokens; each began as the mean of its old pieces"
    )
    assert training["positions"] == "16, which began as 8, repeated"
    assert training["trained alone"] == "the rows of new words, for the first 1,000 steps"


@pytest.mark.parametrize(
    ("options", "decay"),
    [
        (
            {"learning_rate_schedule": "warmup_stable_decay", "num_decay_steps": 20_000},
            "then constant, falling to 0 over the last 20,000 steps",
        ),
        (
            {"learning_rate_schedule": "warmup_stable_decay", "num_decay_steps": 0},
            "then constant",
        ),
        (
            {"learning_rate_schedule": "polynomial", "decay_power": 0.5},
            "then falling to 0 by the power 0.5",
        ),
    ],
)
def test_the_schedule_is_reported(pretrained, options, decay):
    options = pretrained.run.state.options | options
    state = dataclasses.replace(pretrained.run.state, options=options)
    run = dataclasses.replace(pretrained.run, state=state)
    training = tables(card_of(dataclasses.replace(pretrained, run=run)))[1]
    assert training["learning rate"] == f"0.0001, reached after 10,000 steps, {decay}"


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        (None, "15% of the tokens"),
        ("0.3:0.15", "30% of the tokens at first, 15% at the end"),
        ("0.3,0.1@500", "30% of the tokens, 10% after step 500"),
    ],
)
def test_masks_drawn_while_training_are_reported(pretrained, given, reported):
    run = pretrained.run
    manifest = dataclasses.replace(
        run.manifest, options=run.manifest.options | {"masking": "training"}, format_version=2
    )
    state = dataclasses.replace(run.state, options=run.state.options | {"masked_lm_prob": given})
    run = dataclasses.replace(run, manifest=manifest, state=state)
    data, training, *_ = tables(card_of(dataclasses.replace(pretrained, run=run)))
    assert data["masked"] == "anew in each epoch"
    assert training["masked"] == reported


def test_results_of_evaluate_are_reported(own_run):
    write_results(own_run, STEP, RESULTS)
    assert reported_results(own_run) == REPORTED_RESULTS


def test_results_of_the_corpora_of_a_mixture_are_reported(own_run):
    of_pairs = {name: RESULTS[name] for name in RESULTS if name.startswith("next")}
    corpora = {"german": RESULTS, "english": OTHER_RESULTS, "none": of_pairs}
    write_results(own_run, STEP, {**RESULTS, "corpora": corpora})
    assert reported_results(own_run) == REPORTED_RESULTS | {
        "masked-LM loss and accuracy, german": "2.0000 nats, 51.23%",
        "masked-LM loss and accuracy, english": "1.0000 nats, 25.61%",
    }


def test_the_corpora_of_a_mixture_are_a_fact_of_the_data(pretrained):
    manifest = pretrained.run.manifest
    corpora = {"german": {"shares_reached": [0.7, 0.3]}, "english": {"shares_reached": [0.3, 0.7]}}
    mixed = dataclasses.replace(manifest, statistics={**manifest.statistics, "corpora": corpora})
    run = dataclasses.replace(pretrained.run, manifest=mixed)
    data = tables(card_of(dataclasses.replace(pretrained, run=run)))[0]
    assert data["corpora, by training tokens"] == "german 50.0%, english 50.0%"
    assert "corpora, by training tokens" not in tables(card_of(pretrained))[0]


def test_results_without_masks_say_nothing_of_the_masked_lm(own_run):
    rest = {name: value for name, value in RESULTS.items() if name.startswith("next_sentence")}
    write_results(own_run, STEP, rest)
    assert reported_results(own_run) == {
        name: value for name, value in REPORTED_RESULTS.items() if name.startswith("next-sentence")
    }


def test_results_of_evaluate_take_precedence_over_those_of_training(own_run):
    write_results(own_run, STEP, RESULTS)
    write_metrics(own_run, evaluation(STEP, OTHER_RESULTS))
    assert reported_results(own_run) == REPORTED_RESULTS


def test_the_data_set_of_other_results_is_named(own_run):
    write_results(own_run, STEP, RESULTS, on="other/data")
    named = {"data set": "other/data", "SHA-256 of its manifest.json": "1" * 64}
    assert reported_results(own_run) == named | REPORTED_RESULTS
    write_metrics(own_run, evaluation(STEP, OTHER_RESULTS))
    assert reported_results(own_run).keys() == REPORTED_RESULTS.keys()


def test_results_of_earlier_builds_are_not_those_of_held_out_documents(own_run):
    content = json.dumps({"step": STEP, **RESULTS})
    (own_run / "eval_results.json").write_text(content)
    assert reported_results(own_run) == {"data set": "not recorded"} | REPORTED_RESULTS


def test_results_of_another_step_are_not_used(own_run):
    write_results(own_run, STEP - 1, OTHER_RESULTS)
    write_metrics(
        own_run, evaluation(STEP - 1, OTHER_RESULTS), {"step": STEP, "masked_lm_loss": 1.0}
    )
    assert reported_results(own_run) is None


def test_results_of_training_are_used_if_evaluate_saw_another_step(own_run):
    write_results(own_run, STEP - 1, OTHER_RESULTS)
    write_metrics(
        own_run,
        evaluation(STEP - 1, OTHER_RESULTS),
        {"step": STEP, **OTHER_RESULTS, "learning_rate": 1e-4},
        evaluation(STEP, RESULTS),
    )
    assert reported_results(own_run) == REPORTED_RESULTS


def test_an_earlier_checkpoint_has_its_own_results(own_run):
    write_results(own_run, STEP, OTHER_RESULTS)
    write_metrics(own_run, evaluation(STEP - 1, RESULTS), evaluation(STEP, OTHER_RESULTS))
    card = card_of(read_pretrained(own_run / "checkpoints" / f"step-{STEP - 1:08d}"))
    assert tables(card)[1]["steps"].startswith("2 of ")
    assert tables(card)[2] == {"data set": "that of the training"} | REPORTED_RESULTS


def test_evaluations_written_in_training_are_read(own_run):
    sums = {
        "masked_lm_nll": 20.0,
        "masked_lm_correct": 5.123,
        "masked_lm_weights": 10.0,
        "next_sentence_nll": 2.0,
        "next_sentence_correct": 7.0,
        "sequences": 8.0,
    }
    sizes = BatchSizes(TrainingOptions())
    writer = MetricsWriter(own_run, TrainingState(step=STEP), 100, sizes, 1)
    writer.write_evaluation(STEP, sums)
    change_state(latest_checkpoint(own_run), metrics=writer.flushed())
    assert reported_results(own_run) == REPORTED_RESULTS


def test_a_run_without_results_says_so(run):
    assert reported_results(run) is None


def test_an_average_is_described_and_has_no_results(own_run):
    write_results(own_run, STEP, RESULTS)
    write_metrics(own_run, evaluation(STEP, RESULTS))
    card = card_of(read_average(own_run, 2))
    data, training = tables(card)
    assert data["documents"] == "60"
    assert training["weights"] == "the mean of the 2 newest checkpoints"
    assert "It was not evaluated." in card


def test_nothing_is_invented_about_a_converted_model(converted):
    card = card_of(converted)
    assert tables(card) == []
    assert "converted from another format" in card
    assert "evaluat" not in card
    assert "trained by Clozemill" not in card


HOSTILE = [
    "`code` ``more``",
    "`",
    "``",
    "a | b",
    "a \\| b \\\\| c \\",
    "|---|---|\n| a | b |",
    "line\r\n\r\n# heading\n\n---\n",
    "\u2028# heading\u2029\x00\x1b[31m",
    "---\ntags: [evil]\n---",
    "<script>alert(1)</script>",
    "<!-- comment",
    "**bold** _em_ ~~gone~~ $x$",
    "![image](http://example.com/x.png) [link](javascript:x) http://example.com www.example.com",
    "&lt;b&gt; &#124;",
    " ",
]


def markup(card):
    """The kinds of markup of a card, in order, and the texts of all but its code."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    kinds, texts = [], []
    for block in parser.parse(body):
        for token in block.children or [block]:
            kinds.append(token.type)
            texts.append("" if token.type in ("code_inline", "inline") else token.content)
    return yaml.safe_load(front), kinds, texts


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_a_file_becomes_markup(own_run, text):
    write_results(own_run, STEP, RESULTS)
    pretrained = read_pretrained(own_run)

    def card_with(text):
        run = pretrained.run
        manifest = dataclasses.replace(
            run.manifest, options=run.manifest.options | {"word_segmenter": text}
        )
        names = ("optimizer", "precision", "weight_decay_rate", "random_seed", "learning_rate")
        options = run.state.options | dict.fromkeys(names, text)
        state = dataclasses.replace(run.state, options=options, started_from=text)
        run = dataclasses.replace(run, manifest=manifest, state=state)
        return card_of(dataclasses.replace(pretrained, run=run))

    card = card_with(text)
    assert markup(card) == markup(card_with("word"))
    assert len(tables(card)) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("num_train_steps", "<b>"), ("train_batch_size", [1]), ("options", None)]
)
def test_a_fact_of_a_wrong_type_is_reported(pretrained, name, value):
    options = pretrained.run.state.options | {name: value} if name != "options" else value
    run = dataclasses.replace(
        pretrained.run, state=dataclasses.replace(pretrained.run.state, options=options)
    )
    with pytest.raises(UserError, match="does not record what the model card reports") as raised:
        card_of(dataclasses.replace(pretrained, run=run))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", ["run", "converted"])
@pytest.mark.parametrize(
    ("missing", "task", "described"),
    [
        ("no head", "fill-mask", "predicts masked words and whether one text follows another."),
        ("cls/seq_relationship/", "fill-mask", "It predicts masked words. For any"),
        ("cls/predictions/", "feature-extraction", "the encoder alone"),
        ("cls/", "feature-extraction", "the encoder alone"),
    ],
)
def test_abilities_are_described(pretrained, converted, case, missing, task, described):
    card = card_of(without_head({"run": pretrained, "converted": converted}[case], missing))
    _, front, body = card.split("---\n", 2)
    assert card.startswith("---\n")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["bert", "clozemill"],
    }
    assert described in body
    assert ('pipeline("fill-mask"' in body) == (task == "fill-mask")
    assert ("AutoModel.from_pretrained" in body) == (task != "fill-mask")
    assert "AutoModelForSequenceClassification.from_pretrained" in body
    assert "{{" not in card
    assert "{%" not in card
    assert "\n\n\n" not in card
    assert card.endswith(".\n")
    headings = re.findall(r"\n\n(#+ .*)\n\n", card)
    assert headings[1:] == ["## How to use it", "## How it was trained", "## Limits"]


def test_size_counts_the_variables_that_exist(pretrained):
    h, vocabulary = pretrained.config.hidden_size, pretrained.config.vocab_size
    whole = sum(values.size for values in pretrained.weights.values())
    heads = vocabulary + h * h + 3 * h + 2 * h + 2
    assert f"# A BERT with {whole:,} parameters\n" in card_of(pretrained)
    encoder = without_head(pretrained, "cls/")
    assert f"# A BERT with {whole - heads:,} parameters\n" in card_of(encoder)
    assert (
        "The encoder has 2 layers of size 16 with 2 attention heads and a vocabulary of 50 "
        "tokens.\nIt reads sequences of up to 16 tokens.\n"
    ) in card_of(pretrained)


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents", "described"),
    [
        (True, None, "Text is lower-cased and accents are stripped."),
        (False, None, "Text is not lower-cased and accents are kept."),
        (True, False, "Text is lower-cased and accents are kept."),
        (False, True, "Text is not lower-cased and accents are stripped."),
    ],
)
def test_normalization_of_text_is_described(converted, do_lower_case, strip_accents, described):
    own = converted.tokenizer
    tokenizer = TokenizerSettings(own.vocabulary, own.tokens, do_lower_case, strip_accents)
    assert described in model_card(converted, tokenizer)


def test_a_run_without_a_manifest_is_reported(own_run):
    (own_run / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json") as raised:
        card_of(read_pretrained(own_run))
    assert str(own_run) in str(raised.value)
