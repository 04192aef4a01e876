"""Makes the golden data beside it from the whole sets.

    python tests/golden/make.py WHOLE VOCAB

WHOLE is a folder with `tokenization.jsonl.gz`, `adamw_trajectory.npz` and the two tiny models.
VOCAB is a folder with the four published vocabularies. The same folders give the same bytes.
"""

import gzip
import json
import shutil
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path

from pipeline.tokenization import BasicTokenizer
from pipeline.vocabulary import SPECIAL_TOKENS

GOLDEN = Path(__file__).parent
COPIED = ("tiny_bert_gelu_tanh", "tiny_bert_gelu_erf", "adamw_trajectory.npz")
# Of each vocabulary: short texts, and sentences as they stand in articles.
NUM_SHORT, LONGEST_SHORT = 242, 36
NUM_SENTENCES, LONGEST_SENTENCE = 8, 110


def copy_arrays(whole):
    for name in COPIED:
        files = sorted((whole / name).iterdir()) if (whole / name).is_dir() else [whole / name]
        for file in files:
            target = GOLDEN / file.relative_to(whole)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def read_lines(whole):
    """The lines of each vocabulary by their text, so that none comes twice."""
    lines = defaultdict(dict)
    with gzip.open(whole / "tokenization.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in map(json.loads, file):
            lines[line["vocab"]][line["text"]] = line
    return lines


def evenly_spaced(items, number):
    return [items[i * len(items) // number] for i in range(number)]


def letters(text):
    """The characters in it but for ideographs, of which there are too many to have each."""
    return {c for c in text if not unicodedata.name(c, "").startswith("CJK")}


def choose(texts, of_all_vocabularies):
    """Texts of one vocabulary, in their order.

    They are those that the whole set has for every vocabulary, which were written by hand; short
    ones that have a new character; an evenly spaced choice of the other short ones; and a few
    sentences.
    """
    chosen = [text for text in texts if text in of_all_vocabularies]
    seen = set().union(*map(letters, chosen))
    short = [text for text in texts if len(text) <= LONGEST_SHORT and text not in chosen]
    for text in short:
        if not letters(text) <= seen:
            chosen.append(text)
            seen |= letters(text)
    others = [text for text in short if text not in chosen]
    chosen += evenly_spaced(others, NUM_SHORT - len(chosen))
    sentences = [text for text in texts if 2 * LONGEST_SHORT <= len(text) <= LONGEST_SENTENCE]
    chosen += evenly_spaced([text for text in sentences if text not in chosen], NUM_SENTENCES)
    return [text for text in texts if text in set(chosen)]


def reduce_vocabulary(tokens, texts, do_lower_case):
    """The special tokens, and all that stand anywhere in a word of the texts, in their order.

    They are more than the results hold. Every piece that longest-match-first could meet is here,
    also on its way to [UNK]: so it goes the same way as with the whole vocabulary.
    """
    tokenizer = BasicTokenizer(do_lower_case)
    words = {word for text in texts for word in tokenizer.tokenize(text)}
    longest = max(map(len, tokens))
    met = {
        "##" * (start > 0) + word[start:end]
        for word in words
        for start in range(len(word))
        for end in range(start + 1, min(len(word), start + longest) + 1)
    }
    return [token for token in dict.fromkeys(tokens) if token in met or token in SPECIAL_TOKENS]


def to_json(line):
    """JSON in which what cannot be seen is escaped."""
    text = json.dumps(line, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def write_lines(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")


def make_tokenizations(whole, vocab_dir):
    lines = read_lines(whole)
    of_all_vocabularies = set.intersection(*map(set, lines.values()))
    for name, by_text in lines.items():
        [do_lower_case] = {line["do_lower_case"] for line in by_text.values()}
        texts = choose(list(by_text), of_all_vocabularies)
        tokens = (vocab_dir / f"{name}.txt").read_text("utf-8").removesuffix("\n").split("\n")
        reduced = reduce_vocabulary([token.strip() for token in tokens], texts, do_lower_case)
        write_lines(GOLDEN / "vocab" / f"{name}.txt", reduced)
        write_lines(
            GOLDEN / "tokenization" / f"{name}.jsonl",
            [to_json({"text": t, "pieces": " ".join(by_text[t]["tokens"])}) for t in texts],
        )


if __name__ == "__main__":
    whole, vocab_dir = map(Path, sys.argv[1:])
    copy_arrays(whole)
    make_tokenizations(whole, vocab_dir)
