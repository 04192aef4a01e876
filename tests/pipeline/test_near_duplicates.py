"""Near duplicates in arrays, and in real text beside the exact Jaccard index of all pairs."""

import time
from collections import Counter, defaultdict
from itertools import chain, combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.minhash import SKETCH_BINS, Bands, keys_of, sketches_of
from pipeline.near_duplicates import (
    KEY,
    SKETCH,
    find_groups,
    find_near_duplicates,
    keys_of_documents,
)
from pipeline.tokenization import FullTokenizer


def near_duplicates_of(documents, similarity=0.8):
    """The numbers of the near duplicates among documents, lists of token ids."""
    ids, lengths = np.concatenate(documents), np.array([len(each) for each in documents])
    numbers = np.arange(len(documents), dtype="<u8")
    keys = keys_of(ids, lengths, Bands.for_similarity(similarity))
    members = find_groups(keys_of_documents(numbers, keys))
    rows = np.empty(len(members), SKETCH)
    rows["key"], rows["document"] = members["key"], members["document"]
    rows["sketch"] = sketches_of(ids, lengths)[members["document"].astype(int)]
    return find_near_duplicates(rows, similarity).tolist()


def sketch_rows(groups, sketches):
    """Rows of groups, each a list of documents."""
    members = [(key, each) for key, members in enumerate(groups) for each in members]
    rows = np.zeros(len(members), SKETCH)
    for row, (key, document) in zip(rows, members, strict=True):
        row["key"], row["document"], row["sketch"] = key, document, sketches[document]
    return rows


def slow_near_duplicates(groups, sketches, similarity):
    """In each group, document by document: dropped if near one before it that was not dropped."""
    dropped = set()
    for members in groups:
        kept = []
        for document in sorted(members):
            if any(np.mean(sketches[document] == sketches[each]) >= similarity for each in kept):
                dropped.add(document)
            else:
                kept.append(document)
    return sorted(dropped)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 11), min_size=2), max_size=6),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
    st.integers(0, 99),
)
def test_each_group_keeps_the_first_of_near_copies(groups, kinds, seed):
    # Of two documents of neighbouring kinds, about 75 % of the bins are equal.
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 256, (4, SKETCH_BINS), np.uint8)
    for kind in range(1, 4):
        same = rng.random(SKETCH_BINS) < 0.75
        values[kind][same] = values[kind - 1][same]
    sketches = values[kinds]
    rows = sketch_rows(groups, sketches)
    rng.shuffle(rows)
    for similarity in (0.6, 1.0):
        expected = slow_near_duplicates(groups, sketches, similarity)
        assert find_near_duplicates(rows, similarity).tolist() == expected


def test_a_chain_of_copies_keeps_what_is_far_from_its_start():
    """2 is near to 1, which is dropped for 0; but 2 is not near to 0, so it stays."""
    rng = np.random.default_rng(0)
    sketches = np.tile(rng.integers(1, 256, SKETCH_BINS, np.uint8), (3, 1))
    sketches[1, :150] = 1 + sketches[0, :150] % 255
    sketches[2, :300] = 1 + sketches[0, :300] % 255
    assert find_near_duplicates(sketch_rows([[0, 1, 2]], sketches), 0.8).tolist() == [1]
    assert find_near_duplicates(sketch_rows([[1, 2]], sketches), 0.8).tolist() == [2]


def test_without_rows_there_is_nothing():
    assert len(find_groups(np.empty(0, KEY))) == 0
    assert find_near_duplicates(np.empty(0, SKETCH), 0.8).tolist() == []


def test_only_documents_with_a_key_in_common_are_a_group():
    keys = np.array([[1, 2], [3, 2], [1, 4], [5, 6]], np.uint64)
    members = find_groups(keys_of_documents(np.arange(4, dtype="<u8"), keys))
    assert members.tolist() == [(1, 0), (1, 2), (2, 0), (2, 1)]


def test_a_large_group_is_cut_into_parts_with_its_first_documents(monkeypatch):
    monkeypatch.setattr("pipeline.near_duplicates._FIRST_OF_GROUP", 3)
    next_keys = [9, 9, 9, 5, 4, 5, 4, 5, 3, 7]
    keys = np.array([(1, next_key) for next_key in next_keys], np.uint64)
    rows = keys_of_documents(np.arange(10, dtype="<u8"), keys)
    members = find_groups(rows[rows["key"] == 1])
    parts = np.split(members, np.flatnonzero(np.diff(members["key"].astype(np.int64))) + 1)
    assert [part["document"].tolist() for part in parts] == [
        [0, 1, 2, 8, 4, 6],
        [0, 1, 2, 3, 5, 7],
        [0, 1, 2, 9],
    ]
    assert len({int(part["key"][0]) for part in parts}) == 3
    again = find_groups(rows[rows["key"] == 1][::-1])
    np.testing.assert_array_equal(members, again)


def test_twenty_thousand_copies_are_found_fast():
    """As of a page's frame, with one word of their own; the first of them stays."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 20_000, 100)
    documents = []
    for number in range(20_000):
        document = frame.copy()
        document[50] = number
        documents.append(document)
    started = time.process_time()
    assert near_duplicates_of(documents) == list(range(1, 20_000))
    assert time.process_time() - started < 15


def test_a_frame_that_is_most_of_each_document_is_no_reason_to_drop_it(monkeypatch):
    """Each has 60 % of its text in common with all others, and one in 20 has a near copy."""
    monkeypatch.setattr("pipeline.near_duplicates._FIRST_OF_GROUP", 64)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 20_000, 240)
    documents = [np.concatenate([frame, rng.integers(0, 20_000, 80)]) for _ in range(1500)]
    for number in range(0, 1500, 20):
        copy = documents[number].copy()
        copy[300] = 7
        documents.append(copy)
    found = near_duplicates_of(documents)
    assert set(found) <= set(range(1500, 1575))
    assert len(found) >= 0.95 * 75


def shingles(document):
    tokens = document.tolist()
    return {tuple(tokens[first : first + 5]) for first in range(len(tokens) - 4)}


def similar_pairs(documents, similarity):
    """All pairs of documents with at least this exact Jaccard index of their shingles."""
    sets = [shingles(document) for document in documents]
    holders = defaultdict(list)
    for number, members in enumerate(sets):
        for shingle in members:
            holders[shingle].append(number)
    common = Counter(chain.from_iterable(combinations(each, 2) for each in holders.values()))
    return {
        (first, second)
        for (first, second), count in common.items()
        if count >= similarity * len(sets[first] | sets[second])
    }


def copy_of(document, rng):
    """A copy of any similarity from 0.5 to 1: other words, a part cut off, or a part added."""
    similarity = rng.uniform(0.5, 1)
    kept = 2 * similarity / (1 + similarity)
    match rng.integers(3):
        case 0:
            is_other = rng.random(len(document)) > kept ** (1 / 5)
            return np.where(is_other, rng.permutation(document), document)
        case 1:
            return document[: int(similarity * len(document))]
    others = rng.permutation(document)[: int((1 / similarity - 1) * len(document))]
    return np.concatenate([document, others])


def recall_and_precision(documents, similarity, seed):
    """Those of near duplicates among documents, to each of which a copy is planted.

    Recall: of all pairs of at least this exact similarity, the share of which not both stay.
    Precision: of the documents that are dropped, the share with such a pair before them.
    """
    rng = np.random.default_rng(seed)
    documents = [*documents, *(copy_of(document, rng) for document in documents)]
    pairs = similar_pairs(documents, similarity)
    dropped = set(near_duplicates_of(documents, similarity))
    assert len(pairs) > 0.08 * len(documents)
    resolved = sum(not dropped.isdisjoint(pair) for pair in pairs)
    right = len(dropped & {max(pair) for pair in pairs})
    return resolved / len(pairs), right / len(dropped)


def paragraphs_of(text, vocab_file):
    """The paragraphs of real text with 30 tokens or more, as token ids."""
    tokenizer = FullTokenizer(vocab_file)
    ids, lengths = tokenizer.encode_sentences(list(text))
    return [each for each in np.split(ids, np.cumsum(lengths)[:-1]) if len(each) >= 30]


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_near_duplicates_in_real_text_are_found_and_nothing_else(similarity, data_samples):
    sentences = (data_samples / "english.txt").read_text("utf-8").split("\n")
    paragraphs = paragraphs_of(
        map(" ".join, pairwise(sentences)), data_samples / "english_vocab.txt"
    )
    assert len(paragraphs) > 500
    recall, precision = recall_and_precision(paragraphs, similarity, seed=1)
    assert recall >= 0.95
    assert precision >= 0.95


SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared (real corpora)")
@pytest.mark.parametrize(
    ("language", "vocabulary"), [("enwiki", "bert-base-uncased"), ("zhwiki", "bert-base-chinese")]
)
def test_near_duplicates_in_wikipedia_are_found_and_nothing_else(language, vocabulary):
    """Paragraphs, of which the shortest are the hardest; in Chinese, an ideograph is a token."""
    text = (SHARED / "corpora" / language / "wiki_00").read_text("utf-8")[:300_000]
    lines = [line for line in text.split("\n") if not line.startswith("<")]
    paragraphs = paragraphs_of(lines, SHARED / "vocab" / f"{vocabulary}.txt")
    assert len(paragraphs) > 400
    recall, precision = recall_and_precision(paragraphs, 0.8, seed=1)
    assert recall >= 0.95
    assert precision >= 0.95
