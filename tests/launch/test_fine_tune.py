"""The script that tells what a BERT is worth to a classifier."""

import sys

import pytest

transformers = pytest.importorskip("transformers")
fine_tune = pytest.importorskip("launch.recipes.fine_tune")

COLOURS = {"red": "warm", "orange": "warm", "blue": "cold", "green": "cold"}


@pytest.fixture
def bert(tmp_path):
    """A tiny BERT from random weights, with a word for each colour."""
    folder = tmp_path / "BERT"
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *COLOURS]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.fixture
def run(bert, tmp_path, monkeypatch):
    """Runs the script on the lines of two files."""

    def run_on(train, test):
        for name, lines in (("train", train), ("test", test)):
            (tmp_path / f"{name}.tsv").write_text("".join(lines))
        files = [str(tmp_path / f"{name}.tsv") for name in ("train", "test")]
        monkeypatch.setattr(sys, "argv", ["fine_tune.py", str(bert), *files])
        fine_tune.main()

    return run_on


def lines_of(colours):
    return [f"a {colour}\t{COLOURS[colour]}\n" for colour in colours]


def test_a_classifier_learns_few_texts_and_prints_its_accuracy_by_seed(run, monkeypatch, capsys):
    """Classes have any names. A text of a class that is only in the test is never right."""
    monkeypatch.setattr(fine_tune, "STEPS", 30)
    monkeypatch.setattr(fine_tune, "LEARNING_RATE", 1e-2)
    run(lines_of(COLOURS), [*lines_of(COLOURS), "a red\thot\n"])
    assert capsys.readouterr().out == "seed 1: 80.0%\nseed 2: 80.0%\n"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (["a red\twarm\n", "a blue\n"], "train.tsv, line 2: give a text, a tab and the name"),
        (["a red\twarm\t1\n"], "train.tsv, line 1: give"),
        ([], "train.tsv is empty"),
        (lines_of(["red", "orange"]), "train.tsv has texts of one class only"),
    ],
)
def test_what_cannot_be_learnt_is_one_line(train, message, run):
    with pytest.raises(SystemExit, match=message):
        run(train, lines_of(COLOURS))


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"cannot read .*train.tsv"):
        fine_tune.read_examples(tmp_path / "train.tsv")


def test_a_bert_that_is_not_there_is_one_line(run, bert):
    (bert / "config.json").unlink()
    with pytest.raises(SystemExit, match=r"BERT has no config.json: give what"):
        run(lines_of(COLOURS), lines_of(COLOURS))
