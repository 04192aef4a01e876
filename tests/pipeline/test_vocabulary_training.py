import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.documents import ReadOptions
from pipeline.errors import UserError
from pipeline.inputs import match_files
from pipeline.tokenization import FullTokenizer
from pipeline.vocabulary import Vocabulary
from pipeline.vocabulary_training import read_sample, reserved_tokens, train_vocabulary

ROOT = Path(__file__).resolve().parents[2]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train(
    texts,
    vocab_size=1000,
    do_lower_case=True,
    strip_accents=None,
    num_unused=0,
    limit_alphabet=1000,
):
    return train_vocabulary(
        lambda: iter(texts), vocab_size, do_lower_case, strip_accents, num_unused, limit_alphabet
    )


@pytest.fixture(scope="module")
def write_file(tmp_path_factory):
    def write(tokens):
        path = tmp_path_factory.mktemp("trained") / "vocab.txt"
        path.write_text("\n".join(tokens) + "\n", "utf-8")
        return path

    return write


def lines_of(path):
    return path.read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("num_unused", "unk_id"), [(0, 1), (1, 2), (98, 99), (99, 100), (100, 100), (994, 100)]
)
def test_reserved_tokens_have_the_positions_of_the_original(num_unused, unk_id):
    tokens = reserved_tokens(num_unused)
    assert tokens[0] == "[PAD]"
    assert tokens[unk_id : unk_id + 4] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [token for token in tokens if token not in SPECIAL] == [
        f"[unused{number}]" for number in range(num_unused)
    ]
    assert len(tokens) == 5 + num_unused


def test_unused_tokens_continue_after_the_special_tokens():
    tokens = reserved_tokens(994)
    assert tokens[99:105] == ["[unused98]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused99]"]
    assert tokens[-1] == "[unused993]"


def test_a_vocabulary_has_reserved_tokens_characters_their_continuations_and_pieces():
    tokens = train(["the theme, the thesis: 中 € の"], num_unused=2)
    alphabet = [",", ":", "e", "h", "i", "m", "s", "t", "€", "の", "中"]
    inside = [f"##{character}" for character in alphabet if character not in ",:中"]
    assert tokens[: 7 + 11 + 8] == [*reserved_tokens(2), *alphabet, *inside]
    assert tokens[7 + 11 + 8 :] == ["th", "the"]


def test_more_frequent_pairs_are_learned_first():
    assert train(["ab " * 2 + "cd " * 5 + "ef " * 3])[-3:] == ["cd", "ef", "ab"]


def test_pairs_that_occur_once_are_not_learned():
    assert train(["abc abd"]) == [*SPECIAL, *"abcd", *(f"##{letter}" for letter in "abcd"), "ab"]


def test_equally_frequent_pairs_are_learned_in_the_order_of_their_characters():
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [first + second for first in letters for second in letters]
    for texts in (words * 2, words[::-1] * 2):
        assert train(texts, 5 + 52 + 300)[5 + 52 :] == words[:300]


def test_smaller_code_points_win_among_equally_frequent_characters():
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 500)]
    for texts in (characters, characters[::-1]):
        assert train(texts, limit_alphabet=200)[5:] == characters[:200]


def test_the_alphabet_keeps_the_most_frequent_characters(write_file):
    tokens = train(["zz zz yy yy xx ww"], limit_alphabet=2)
    assert tokens == [*SPECIAL, "y", "z", "##y", "##z", "yy", "zz"]
    tokenizer = FullTokenizer(write_file(tokens))
    assert tokenizer.tokenize("yz xz zz") == ["y", "##z", "[UNK]", "zz"]


@pytest.mark.parametrize(
    ("num_long", "outcome"), [(0, "nothing"), (1, "nothing"), (20, "warning"), (300, "error")]
)
def test_words_that_are_too_long_are_named(num_long, outcome, caplog):
    texts = ["a short text of words " * 10] * 200 + ["ACGT" * 75] * num_long
    if outcome == "error":
        with pytest.raises(UserError, match=r"% of the text is in words of over 200 characters"):
            train(texts, vocab_size=100)
        return
    train(texts, vocab_size=100)
    assert ("in words of over 200 characters" in caplog.text) == (outcome == "warning")


def test_a_small_alphabet_causes_a_warning(caplog):
    text = "aaaa bbbb cccc d"
    with caplog.at_level("INFO", logger="absl"):
        train([text], vocab_size=17, limit_alphabet=4)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with caplog.at_level("INFO", logger="absl"):
        train([text], vocab_size=12, limit_alphabet=2)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "--limit_alphabet=4 " in warning.getMessage()


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["", "   \t\u3000\u2028"],
        ["\0\ufffd\x07", "\ud800"],
        ["\u0301"],
    ],
    ids=["nothing", "white space", "only dropped characters", "accents only"],
)
def test_no_text_is_an_error(texts):
    with pytest.raises(UserError, match="no text"):
        train(texts)


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents", "characters"),
    [
        (True, None, "e"),
        (False, None, "Eeé"),
        (True, False, "eé"),
        (False, True, "Ee"),
    ],
)
def test_case_and_accents_are_treated_as_by_the_tokenizer(do_lower_case, strip_accents, characters):
    tokens = train(["E é e"], 100, do_lower_case, strip_accents)
    assert tokens[5:] == [*characters, *(f"##{character}" for character in characters)]


def test_special_tokens_in_the_text_are_treated_as_text(write_file):
    tokens = train(["[MASK] [PAD] [unused0] [unused1] ##ab [MASK] ##ab"], num_unused=1)
    assert sorted(token for token in tokens if token.startswith("[") and len(token) > 1) == sorted(
        [*SPECIAL, "[unused0]"]
    )
    assert {"mask", "ab", "unused", "[", "]", "#"} <= set(tokens)
    assert len(set(tokens)) == len(tokens)
    assert "[UNK]" not in FullTokenizer(write_file(tokens)).tokenize("[MASK] ##ab")


def test_lone_surrogates_and_empty_texts_do_not_matter():
    assert train(["", "ab\ud800 \udfffab", "", "\ud800 cd cd", ""]) == train(["ab ab", "cd cd"])


def test_words_too_long_for_the_tokenizer_have_no_effect():
    known, overlong = "ab" * 100, "cd" * 101
    assert known in train([f"{known} {known} {known} {overlong} {overlong}"])
    text = "ef " * 300
    assert train([f"ef {overlong}é{overlong} ef", text]) == train(["ef ef", text])
    assert train(["一二" * 101]) == [*SPECIAL, "一", "二"]


def test_vocab_size_is_an_upper_bound(caplog):
    text = "ab ab abc abc abcd abcd"
    fixed = 5 + 4 + 4
    assert len(train([text], fixed)) == fixed
    assert len(train([text], fixed + 2)) == fixed + 2
    with caplog.at_level("INFO", logger="absl"):
        assert len(train([text], fixed + 2000)) == fixed + 3
    assert "16 tokens, not 2,013" in caplog.messages[-1]


def test_a_vocab_size_without_room_for_the_alphabet_is_an_error():
    with pytest.raises(UserError, match=r"--vocab_size=21 is too small") as raised:
        train(["abc 中"], 21, num_unused=10)
    assert "15 special and unused tokens, 4 characters" in str(raised.value)
    assert len(train(["abc 中"], 22, num_unused=10)) == 22


@pytest.mark.parametrize("option", [{"num_unused": -1}, {"limit_alphabet": 0}])
def test_numbers_out_of_range_are_errors(option):
    with pytest.raises(UserError, match="--" + next(iter(option))):
        train(["text"], **option)


def test_the_error_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'clozemill\[vocab\]'"):
        train(["text"])


def test_errors_while_reading_are_raised():
    def read_texts(calls=iter((1, 2))):  # noqa: B008 - counts the calls
        yield "abc"
        if next(calls) == 2:
            raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        train_vocabulary(read_texts, 100, True, None, 0, 100)


@pytest.mark.parametrize(
    ("sample", "vocab_size", "do_lower_case", "strip_accents"),
    [
        ("english.txt", 2000, True, None),
        ("english.txt", 2000, False, None),
        ("chinese.txt", 2500, True, None),
        ("chinese.txt", 2500, True, False),
    ],
)
def test_the_samples_have_no_unknown_words_and_short_sequences(
    sample, vocab_size, do_lower_case, strip_accents, data_samples, write_file
):
    texts = lines_of(data_samples / sample)
    path = write_file(train(texts, vocab_size, do_lower_case, strip_accents, 99, 5000))
    assert len(Vocabulary(path)) <= vocab_size
    assert Vocabulary(path).ids["[UNK]"] == 100
    tokenizer = FullTokenizer(path, do_lower_case, strip_accents)
    pieces = tokenizer.convert_tokens_to_ids(
        piece for text in texts for piece in tokenizer.tokenize(text)
    )
    words = sum(len(tokenizer.basic_tokenizer.tokenize(text)) for text in texts)
    assert 100 not in pieces
    assert max(pieces) >= len(Vocabulary(path)) - 100
    assert words <= len(pieces) < 1.6 * words


def test_all_processes_and_numbers_of_threads_give_the_same_tokens(data_samples):
    code = """
import json, pathlib, sys
from pipeline.vocabulary_training import train_vocabulary
lines = pathlib.Path(sys.argv[1]).read_text("utf-8").splitlines()
print(json.dumps(train_vocabulary(lambda: iter(lines), 2500, True, None, 5, 35)))
"""
    sample = data_samples / "english.txt"
    found = []
    for threads, parallel, hash_seed in [("1", "true", "0"), ("2", "true", "1"), ("4", "0", "2")]:
        environment = {
            **os.environ,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": parallel,
            "PYTHONHASHSEED": hash_seed,
        }
        result = subprocess.run(
            [sys.executable, "-c", code, str(sample)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found.append(json.loads(result.stdout))
    found.append(train(lines_of(sample), 2500, num_unused=5, limit_alphabet=35))
    found.append(train(lines_of(sample)[::-1], 2500, num_unused=5, limit_alphabet=35))
    assert len(found[0]) == 2500
    assert all(tokens == found[0] for tokens in found)


def test_by_default_the_alphabet_covers_nearly_all_text():
    characters = [chr(0x4E00 + number) for number in range(1500)]
    texts = ["".join(characters)] * 3 + ["\u9fa5"]
    assert set(characters) <= set(train(texts, vocab_size=5000, limit_alphabet=None))
    few = train(["ab"], limit_alphabet=None)
    assert few[5:7] == ["a", "b"]


@pytest.fixture
def corpus(tmp_path):
    """Forty files of about 1 KB, each with a word that no other file has."""
    for number in range(40):
        line = f"file{number} " * 12
        (tmp_path / f"{number:02d}.txt").write_text(f"{line}\n\n" * 12)
    return match_files([f"{tmp_path}/*.txt"])


def test_a_small_corpus_is_read_completely_and_in_order(corpus):
    lines = list(read_sample(corpus, ReadOptions(), 10**9, random_seed=1))
    assert [line.split()[0] for line in lines] == [
        f"file{number}" for number in range(40) for _ in range(12)
    ]


def test_a_sample_is_bounded_and_drawn_from_the_whole_corpus(corpus, monkeypatch):
    monkeypatch.setattr("pipeline.vocabulary_training._SAMPLED_BYTES", 1)
    size = sum(file.size for file in corpus)

    def sample(seed):
        return list(read_sample(corpus, ReadOptions(), size // 4, seed))

    lines = sample(1)
    assert size // 4 <= sum(map(len, lines)) <= size // 4 + 200
    numbers = [int(line.split()[0].removeprefix("file")) for line in lines]
    assert min(numbers) < 13
    assert max(numbers) > 26
    assert lines == sample(1) != sample(2)


def test_a_sample_comes_from_the_documents_that_generate_reads(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "One. Two."}\n{"body": "x"}\n')
    files = match_files([f"{tmp_path}/a.jsonl"])
    options = ReadOptions(text_field="body", min_document_characters=5)
    assert list(read_sample(files, options, 10**6, 1)) == ["One. Two."]


def test_an_empty_sample_is_an_error(corpus):
    with pytest.raises(UserError, match="--max_bytes=0"):
        list(read_sample(corpus, ReadOptions(), 0, 1))
