"""Fine-tunes a classifier of texts from an exported BERT, to tell what its pretraining is worth.

Each line of the two files has a text, a tab and the name of its class. Training takes 200 steps of
32 texts of at most 48 tokens, by AdamW at a learning rate of 1e-4 that falls to 0. It takes some
minutes on a processor, and needs transformers and torch.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, logging

STEPS = 200
BATCH_SIZE = 32
MAX_LENGTH = 48
# A usual rate for models of some million weights.
LEARNING_RATE = 1e-4
SEEDS = (1, 2)

Example = tuple[str, str]
"""A text and the name of its class."""


def read_examples(path: Path) -> list[Example]:
    """Reads the lines of a file, each a text, a tab and the name of its class.

    Raises:
      SystemExit: the file cannot be read, has no line, or a line is otherwise.
    """
    try:
        with path.open(encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"cannot read {path}: {error}")
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            sys.exit(f"{path}, line {number}: give a text, a tab and the name of its class")
    if not rows:
        sys.exit(f"{path} is empty")
    return [(text, name) for text, name in rows]


def accuracy_after_fine_tuning(
    bert: Path, train: list[Example], test: list[Example], seed: int, random_weights: bool = False
) -> float:
    """Fine-tunes a classifier, and returns the share of the test's texts that it gets right.

    Args:
      bert: what `clozemill export` wrote for transformers.
      train: the texts to learn from, of all classes; they are repeated if 200 batches need more.
      test: other texts.
      seed: of the order of the texts and of the weights that the BERT lacks.
      random_weights: whether all weights are random, for comparison.
    """
    torch.manual_seed(seed)
    order: list[int] = []
    while len(order) < STEPS * BATCH_SIZE:
        order += torch.randperm(len(train)).tolist()
    number_of = {name: number for number, name in enumerate(sorted({name for _, name in train}))}
    tokenizer = AutoTokenizer.from_pretrained(bert)
    config = AutoConfig.from_pretrained(bert, num_labels=len(number_of))
    if random_weights:
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(bert, config=config)

    def tensors(examples: list[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        texts, names = zip(*examples, strict=True)
        inputs = tokenizer(
            list(texts), truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
        )
        # A class that the training texts lack has no number, so that no answer is right.
        return inputs, torch.tensor([number_of.get(name, -1) for name in names])

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=STEPS)
    model.train()
    for start in tqdm(range(0, STEPS * BATCH_SIZE, BATCH_SIZE), f"seed {seed}"):
        inputs, labels = tensors([train[place] for place in order[start : start + BATCH_SIZE]])
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), BATCH_SIZE):
            inputs, labels = tensors(test[start : start + BATCH_SIZE])
            right += (model(**inputs).logits.argmax(-1) == labels).sum().item()
    return right / len(test)


def main() -> None:
    """Prints the accuracy of each seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bert", type=Path, help="what `clozemill export` wrote for transformers")
    parser.add_argument("train", type=Path, help="lines of a text, a tab and its class")
    parser.add_argument("test", type=Path, help="other such lines")
    parser.add_argument(
        "--random_weights", action="store_true", help="begin with random weights, for comparison"
    )
    given = parser.parse_args()
    logging.set_verbosity_error()  # that the classifier's weights are new is no news
    logging.disable_progress_bar()
    if not (given.bert / "config.json").exists():
        sys.exit(f"{given.bert} has no config.json: give what `clozemill export` wrote")
    train, test = read_examples(given.train), read_examples(given.test)
    if len({name for _, name in train}) == 1:
        sys.exit(f"{given.train} has texts of one class only: give those of two or more")
    for seed in SEEDS:
        accuracy = accuracy_after_fine_tuning(given.bert, train, test, seed, given.random_weights)
        print(f"seed {seed}: {accuracy:.1%}", flush=True)


if __name__ == "__main__":
    main()
