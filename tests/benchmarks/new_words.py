"""Measures what new words are worth to a BERT: pieces a word, and masked-LM loss per character.

The vocabulary is that of bert-base-uncased. The domain is the documentation inside installed
packages, all under permissive licences: the docstrings of each module make a document. One module
in 20 is kept apart: it is neither trained on nor searched for new words.

First, the pieces that the words of the documents kept apart take, by the number of new tokens.

Then BERT-mini is trained on English Wikipedia with the old vocabulary. It goes on with the domain
for as many steps with either vocabulary, the old one and one with new words. A loss per token would
favour short tokens, which are easier. So it is divided by characters: the sum of the losses of all
masked tokens, in nats, divided by the number of characters that these tokens stand for (`##ed` is
two, [UNK] is one). Whole words are masked, so no piece of a masked word gives away the others. Both
are evaluated on the same documents.

It takes about 15 minutes on two cores, needs ../shared, and goes on where it was interrupted.
"""

import argparse
import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from pipeline.manifest import DataSet
from pipeline.tokenization import BasicTokenizer
from pipeline.vocabulary import Vocabulary
from pipeline.vocabulary_extension import (
    count_words,
    new_tokens,
    tokens_and_unknown,
    with_new_tokens,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
PACKAGES = ("numpy", "scipy", "jax", "keras", "networkx", "sympy")
HELD_OUT_EVERY = 20
NUMBERS = (250, 500, 994, 2000, 4000, 8000)
WANTED_CHANGE = -0.15
NUM_NEW_TOKENS = 2000
GENERAL_STEPS, DOMAIN_STEPS = 1500, 500
DATA = (
    *("--max_seq_length=48", "--dupe_factor=1", "--do_whole_word_mask"),
    "--sentence_pairs=none",
)
TRAINING = ("--train_batch_size=24", "--learning_rate=1e-3", "--log_every_steps=100")


def clozemill(*arguments):
    """Runs a verb; returns what it printed on stdout."""
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def docstrings(package):
    """The docstrings of each module of a package, as one text."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(folder.rglob("*.py")):
        if "tests" in path.parts:
            continue
        try:
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        except (SyntaxError, UnicodeDecodeError):  # an example of what cannot be read
            continue
        documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
        found = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
        if text := "\n".join(filter(None, found)):
            yield text


def write_domain(train, held_out):
    """Writes the documents to two files of JSON Lines; returns the texts of both."""
    texts = [text for package in PACKAGES for text in docstrings(package)]
    kept_apart = texts[::HELD_OUT_EVERY]
    searched = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY]
    for path, part in ((train, searched), (held_out, kept_apart)):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part), "utf-8")
    return searched, kept_apart


def print_pieces(vocab_file, searched, kept_apart):
    """Prints the pieces a word of both parts, by the number of new tokens."""
    tokens = Vocabulary(vocab_file).tokens
    parts = [count_words(texts, BasicTokenizer()) for texts in (searched, kept_apart)]
    marks = [
        sum(count for word, count in words.items() if len(word) == 1 and not word.isalnum())
        for words in parts
    ]
    chosen = new_tokens(tokens, parts[0], NUMBERS[-1])

    def figures(number):
        extended = with_new_tokens(tokens, chosen[:number])
        for words, in_marks in zip(parts, marks, strict=True):
            total, _ = tokens_and_unknown(extended, words)
            yield total, (total - in_marks) / (words.total() - in_marks)

    before = list(figures(0))
    for number in (0, *NUMBERS):
        line = {"new_tokens": number}
        for name, old, new in zip(("searched", "kept_apart"), before, figures(number), strict=True):
            line[f"{name}_pieces_a_word"] = round(new[1], 4)
            line[f"{name}_pieces_a_word_change"] = round(new[1] / old[1] - 1, 4)
            line[f"{name}_tokens_change"] = round(new[0] / old[0] - 1, 4)
        print(json.dumps(line), flush=True)
    low, high = 0, len(chosen)
    while low < high:  # the fewest tokens that reach it in the text that was searched
        middle = (low + high) // 2
        _, pieces = next(figures(middle))
        low, high = (
            (low, middle) if pieces <= (1 + WANTED_CHANGE) * before[0][1] else (middle + 1, high)
        )
    reached = next(figures(low))[1] <= (1 + WANTED_CHANGE) * before[0][1]
    print(json.dumps({"new_tokens_for_15_percent_fewer": low if reached else None}), flush=True)


def loss_per_character(run, data_dir):
    """The masked-LM loss of a run on eval shards, in nats per character; see above."""
    from modeling.batches import evaluation_batches

    output = clozemill("evaluate", f"--run_dir={run}", f"--data_dir={data_dir}")
    per_token = float(dict(line.split(None, 1) for line in output.splitlines())["masked_lm_loss"])
    data_set = DataSet.read(data_dir)
    tokens = Vocabulary(data_set.vocabulary).tokens
    lengths = [1 if token == "[UNK]" else len(token.removeprefix("##")) for token in tokens]
    masked = characters = 0
    for batch in evaluation_batches(data_set, 256):
        weights = batch["masked_lm_weights"].numpy() > 0
        ids = batch["masked_lm_ids"].numpy()[weights]
        masked += len(ids)
        characters += sum(lengths[number] for number in ids.tolist())
    return {
        "nats_per_character": round(per_token * masked / characters, 4),
        "nats_per_token": per_token,
        "masked_tokens": masked,
        "characters": characters,
    }


def generate(text, vocab_file, output_dir, *flags):
    clozemill(
        *("generate", f"--input_file={text}", f"--vocab_file={vocab_file}"),
        *(f"--output_dir={output_dir}", *DATA, *flags),
    )


def pretrain(data_dir, output_dir, steps, *flags):
    clozemill(
        *("pretrain", f"--data_dir={data_dir}", f"--output_dir={output_dir}", *TRAINING, *flags),
        *(f"--num_train_steps={steps}", f"--save_checkpoints_steps={steps}"),
    )


def main():
    """Prints both measures, a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="the directory of all runs")
    parser.add_argument("--only_pieces", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    folder = arguments.work_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    old_vocab, train, held_out = (
        *(SHARED / "vocab/bert-base-uncased.txt", folder / "train.jsonl"),
        folder / "held_out.jsonl",
    )
    searched, kept_apart = write_domain(train, held_out)
    print_pieces(old_vocab, searched, kept_apart)
    if arguments.only_pieces:
        return
    general = folder / "general"
    generate(SHARED / "corpora/enwiki/wiki_*", old_vocab, folder / "general_data")
    pretrain(folder / "general_data", general, GENERAL_STEPS, "--model=mini")
    new_vocab = folder / "new_vocab.txt"
    print(
        clozemill(
            *("vocab", f"--extend={old_vocab}", f"--input_file={train}"),
            *(f"--num_new_tokens={NUM_NEW_TOKENS}", f"--output_file={new_vocab}"),
        )
    )
    for name, vocab_file in (("old", old_vocab), ("new", new_vocab)):
        data_dir, eval_dir, run = (folder / f"{name}{suffix}" for suffix in ("_data", "_eval", ""))
        generate(train, vocab_file, data_dir)
        # The eval split of a data set of its own: the documents that were kept apart.
        generate(held_out, vocab_file, eval_dir, "--eval_fraction=0.9")
        pretrain(data_dir, run, DOMAIN_STEPS, f"--init_checkpoint={general}")
        if name == "old":
            line = {"vocabulary": name, "domain_steps": 0, **loss_per_character(general, eval_dir)}
            print(json.dumps(line), flush=True)
        line = {"vocabulary": name, "domain_steps": DOMAIN_STEPS}
        print(json.dumps(line | loss_per_character(run, eval_dir)), flush=True)


if __name__ == "__main__":
    main()
