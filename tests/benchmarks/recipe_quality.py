"""Compares what BERT-mini learns by the original recipe and by the newer one, `base_2026`.

Both see as many real tokens of the same text, English and Chinese Wikipedia, at the same batch of
positions and the same peak of the learning rate, without dropout. What differs: the original has
next-sentence pairs, stored masks of 15 %, padding, and a linear decay. The newer one has single
segments in packed rows, masks drawn while training that fall from 30 % to 15 %, and a learning rate
that is constant until the last fifth. Each model is evaluated on stored masks of 15 %, in pairs and
in single segments, and fine-tuned as in tests/end_to_end/test_downstream.py.

It takes about two hours on two cores, needs ../shared, and goes on where it was interrupted.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "end_to_end"))

from test_downstream import LANGUAGES, SHARED, examples

from pipeline.manifest import Manifest

RECIPES = ("original", "base_2026")
SEEDS = (1, 2)
SEQ_LENGTH, BATCH_SIZE, STEPS = 48, 32, 4000
SEQUENCES_OF_A_ROW = 2
OF_ALL = (
    *("--model=mini", "--learning_rate=1e-3", f"--num_warmup_steps={STEPS // 20}"),
    *("--hidden_dropout_prob=0", "--attention_probs_dropout_prob=0", "--log_every_steps=100"),
)
FIGURES = (
    *("masked_lm_loss", "masked_lm_accuracy"),
    *("next_sentence_loss", "next_sentence_accuracy"),
)


def clozemill(*arguments):
    """Runs a verb; returns what it printed on stdout."""
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def generate(corpus, directory):
    """Makes the data of both recipes from a corpus."""
    text, vocab = f"--input_file={corpus}/wiki_*", directory / "vocab.txt"
    if not vocab.exists():
        clozemill("vocab", text, f"--output_file={vocab}", "--vocab_size=10000")
    common = text, f"--vocab_file={vocab}", f"--max_seq_length={SEQ_LENGTH}", "--eval_fraction=0.01"
    clozemill("generate", *common, f"--output_dir={directory / 'original_data'}", "--dupe_factor=2")
    clozemill(
        *("generate", *common, f"--output_dir={directory / 'base_2026_data'}", "--dupe_factor=1"),
        *("--sentence_pairs=none", "--masking=training"),
        f"--packed_row_length={SEQUENCES_OF_A_ROW * SEQ_LENGTH}",
    )


def tokens_per_instance(data_dir):
    """The real tokens of an instance of the train shards, in the mean."""
    shards = Manifest.read(data_dir).shards_of("train")
    return sum(shard.tokens for shard in shards) / sum(shard.instances for shard in shards)


def pretrain(recipe, directory, seed):
    """Trains a model by a recipe; returns the run."""
    run, data_dir = directory / f"{recipe}_{seed}", directory / f"{recipe}_data"
    flags, steps = ("--noadam_bias_correction", f"--train_batch_size={BATCH_SIZE}"), STEPS
    if recipe == "base_2026":
        rows = BATCH_SIZE // SEQUENCES_OF_A_ROW
        tokens = STEPS * BATCH_SIZE * tokens_per_instance(directory / "original_data")
        steps = round(tokens / rows / tokens_per_instance(data_dir))
        flags = (
            *(f"--train_batch_size={rows}", "--masked_lm_prob=0.3:0.15"),
            "--learning_rate_schedule=warmup_stable_decay",
            f"--num_decay_steps={steps // 5}",
        )
    clozemill(
        *("pretrain", *OF_ALL, *flags, f"--data_dir={data_dir}", f"--output_dir={run}"),
        *(f"--num_train_steps={steps}", f"--random_seed={seed}"),
    )
    return run


def evaluate(run, data_dir):
    """The figures of a run on the eval shards of a data set."""
    clozemill("evaluate", f"--run_dir={run}", f"--data_dir={data_dir}")
    evaluations = json.loads((run / "eval_results.json").read_text())["evaluations"]
    (found,) = (each for each in evaluations if Path(each["data_dir"]) == data_dir.resolve())
    return {name: found[name] for name in FIGURES if found.get(name) is not None}


def fine_tune(run, train, test):
    """The mean accuracy of two classifiers that begin with the run's weights."""
    from launch.recipes.fine_tune import accuracy_after_fine_tuning

    exported = run.with_name(f"{run.name}_exported")
    clozemill("export", f"--run_dir={run}", f"--output_dir={exported}", "--overwrite")
    train, test = examples(train), examples(test)
    accuracies = [accuracy_after_fine_tuning(exported, train, test, seed) for seed in SEEDS]
    return sum(accuracies) / len(accuracies)


def main():
    """Prints the figures of every model, a line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="the directory of all runs")
    work_dir = parser.parse_args().work_dir.resolve()
    for seed in SEEDS:
        for language, (corpus, train, test) in LANGUAGES.items():
            directory = work_dir / language
            directory.mkdir(parents=True, exist_ok=True)
            generate(SHARED / corpus, directory)
            for recipe in RECIPES:
                run = pretrain(recipe, directory, seed)
                figures = {
                    kind: evaluate(run, directory / f"{data}_data")
                    for kind, data in (("pairs", "original"), ("single", "base_2026"))
                }
                accuracy = fine_tune(run, SHARED / train, SHARED / test)
                line = {"language": language, "recipe": recipe, "seed": seed, **figures}
                print(json.dumps(line | {"fine_tuned": accuracy}), flush=True)


if __name__ == "__main__":
    main()
