"""Pretraining helps downstream: fine-tuning beats the same model from random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = Path(__file__).parents[3] / "shared"
# The corpus, the fine-tuning data and the test data.
LANGUAGES = {
    "english": ("corpora/enwiki", "finetune/sst2/train.tsv", "finetune/sst2/dev.tsv"),
    "chinese": ("corpora/zhwiki", "finetune/thucnews/dev.txt", "finetune/thucnews/test.txt"),
}
MAX_SEQ_LENGTH = 48

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared (real corpora)"),
]


def clozemill(*arguments):
    subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )


def pretrained(corpus, directory):
    """Pretrains `--model=mini` for some minutes and returns its export for transformers."""
    vocab, data, run = directory / "vocab.txt", directory / "data", directory / "run"
    text = f"--input_file={corpus}/wiki_*"
    clozemill("vocab", text, f"--output_file={vocab}", "--vocab_size=10000")
    clozemill(
        "generate",
        text,
        f"--vocab_file={vocab}",
        f"--output_dir={data}",
        f"--max_seq_length={MAX_SEQ_LENGTH}",
        "--max_predictions_per_seq=8",
        "--dupe_factor=1",
        "--eval_fraction=0.01",
    )
    # Small batches give many cheap updates. A run this short cannot overfit and needs no dropout.
    clozemill(
        "pretrain",
        "--model=mini",
        f"--data_dir={data}",
        f"--output_dir={run}",
        "--hidden_dropout_prob=0",
        "--attention_probs_dropout_prob=0",
        "--train_batch_size=32",
        "--learning_rate=1e-3",
        "--num_train_steps=3000",
        "--num_warmup_steps=150",
        "--log_every_steps=100",
        "--eval_every_steps=1000",
    )
    clozemill("export", f"--run_dir={run}", f"--output_dir={directory / 'exported'}")
    evaluation = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    print(f"masked LM on the eval shards: {evaluation['eval_masked_lm_loss']:.3f}")
    return directory / "exported"


def examples(file):
    """Reads texts and classes. SST-2 has a header and the class first; THUCNews has it last."""
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()]
    if file.suffix == ".tsv":
        rows = [(text, label) for label, text in rows[1:]]
    return [(text, label) for text, label in rows]


@pytest.mark.parametrize("language", LANGUAGES)
def test_pretraining_adds_three_points_of_accuracy(language, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from launch.recipes.fine_tune import SEEDS, accuracy_after_fine_tuning

    corpus, train, test = (SHARED / path for path in LANGUAGES[language])
    exported = pretrained(corpus, tmp_path)
    train, test = examples(train), examples(test)
    mean = {}
    for random_weights in (True, False):
        accuracies = [
            accuracy_after_fine_tuning(exported, train, test, seed, random_weights)
            for seed in SEEDS
        ]
        mean[random_weights] = sum(accuracies) / len(SEEDS)
        print(f"{language}, random weights {random_weights}: {accuracies}")
    # A pretraining this short gives only a head start: with more steps, or at three times the
    # learning rate, the random weights catch up.
    assert mean[False] >= mean[True] + 0.03
