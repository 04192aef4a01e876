from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buckets import Bucket
from pipeline.corpus import RowGroup, read_documents_of_bucket, write_documents
from pipeline.errors import UserError
from pipeline.mixing import (
    Others,
    measure_documents,
    mix_documents,
    plan_mixing,
    read_measured,
    write_measured,
)
from pipeline.mixtures import Corpus, Mixture
from pipeline.segment_pairs import plan_segment_pairs


def mixture_of(weights, temperatures=()):
    names = [f"c{number}" for number in range(len(weights))]
    corpora = [
        Corpus(name, ["x"], weight=None if temperatures else weight)
        for name, weight in zip(names, weights, strict=True)
    ]
    return Mixture(tuple(corpora), temperatures)


def measured_files(folder, documents, num_files):
    """Writes (corpus, key, tokens) of documents to some files, one after the other in turn."""
    paths = []
    for number in range(num_files):
        rows = sorted(documents[number::num_files])
        corpus, key, tokens = zip(*rows, strict=True) if rows else ((), (), ())
        path = Path(folder, f"{number}.parquet")
        columns = [
            pa.array(corpus, pa.int32()),
            pa.array(key, pa.uint64()),
            pa.array(tokens, pa.int64()),
        ]
        write_measured(path, pa.table(columns, names=["corpus", "key", "tokens"]))
        paths.append(path)
    return paths


def arrays_of(documents, number):
    own = [(key, tokens) for corpus, key, tokens in documents if corpus == number]
    keys, tokens = zip(*own, strict=True)
    return np.array(keys, np.uint64), np.array(tokens, np.int64)


def copies_of(plan, corpus, keys, pass_index):
    documents = {"corpus": np.full(len(keys), corpus), "key": np.array(keys, np.uint64)}
    return plan.copies(documents, pass_index)


# Keys that share their first bits are looked at one by one.
KEYS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 50).map(lambda n: 2**40 + n),
    st.integers(0, 2).map(lambda n: 2**64 - 1 - n),
)


@st.composite
def mixtures(draw):
    documents = []
    num_corpora = draw(st.integers(1, 4))
    for corpus in range(num_corpora):
        keys = draw(st.lists(KEYS, min_size=1, max_size=40, unique=True))
        documents += [(corpus, key, draw(st.integers(1, 10_000))) for key in keys]
    num_passes = draw(st.integers(1, 5))
    if draw(st.booleans()):
        temperatures = draw(st.lists(st.floats(0, 1), min_size=num_passes, max_size=num_passes))
        return documents, mixture_of([None] * num_corpora, tuple(temperatures)), num_passes
    weights = draw(st.lists(st.floats(1e-3, 1e3), min_size=num_corpora, max_size=num_corpora))
    return documents, mixture_of(weights), num_passes


@settings(deadline=None)
@given(mixtures(), st.integers(1, 3))
def test_every_share_is_reached_up_to_one_document(drawn, num_files):
    documents, mixture, num_passes = drawn
    with TemporaryDirectory() as folder:
        plan = plan_mixing(mixture, measured_files(folder, documents, num_files), num_passes)
    total = sum(tokens for _, _, tokens in documents)
    sizes = np.array([arrays_of(documents, n)[1].sum() for n in range(len(mixture.names))])
    asked = mixture.shares(sizes, num_passes) * total
    for number, rotation in enumerate(plan.rotations.values()):
        keys, tokens = arrays_of(documents, number)
        assert (rotation.documents, rotation.tokens) == (len(keys), tokens.sum())
        for pass_index in range(num_passes):
            copies = copies_of(plan, number, keys, pass_index)
            read = int((copies * tokens).sum())
            assert read == rotation.tokens_read[pass_index]
            assert copies.sum() == rotation.documents_read[pass_index]
            assert copies.min() >= 0
            assert copies.max() - copies.min() <= 1
            within_a_document = abs(read - asked[pass_index, number]) <= tokens.max() + 1e-6 * total
            assert within_a_document or abs(read / total - asked[pass_index, number] / total) < 5e-3
        # No error adds up from pass to pass.
        assert abs(sum(rotation.tokens_read) - asked[:, number].sum()) <= (
            tokens.max() / 2 + 1e-6 * total
        )
    assert plan.documents == len(documents)
    reached = np.array([plan.shares_reached(name) for name in mixture.names])
    assert reached.sum(axis=0) == pytest.approx(1)


@settings(deadline=None)
@given(mixtures())
def test_the_plan_does_not_depend_on_the_files(drawn):
    documents, mixture, num_passes = drawn
    with TemporaryDirectory() as folder:
        plans = [
            plan_mixing(mixture, measured_files(folder, documents[::step], num_files), num_passes)
            for step, num_files in ((1, 1), (-1, 3))
        ]
    assert plans[0] == plans[1]


def test_passes_read_on_where_the_last_one_ended(tmp_path):
    """The example in the module's docstring: three documents of which 8, 8 and 20 are asked."""
    documents = [(0, 1, 4), (0, 2 << 60, 4), (0, 3 << 60, 4), (1, 0, 24)]
    mixture = mixture_of([2, 7])
    plan = plan_mixing(mixture, measured_files(tmp_path, documents, 1), 3)
    copies = [copies_of(plan, 0, [1, 2 << 60, 3 << 60], p).tolist() for p in range(3)]
    assert copies == [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    assert plan.rotations["c0"].turns == [0, 0, 1, 2]
    assert plan.rotations["c1"].tokens_read == [24, 24, 48]


def test_a_share_above_the_whole_corpus_repeats_it(tmp_path):
    documents = [(0, n << 58, 10) for n in range(10)] + [(1, n << 50, 10) for n in range(90)]
    plan = plan_mixing(mixture_of([1, 1]), measured_files(tmp_path, documents, 4), 2)
    assert plan.rotations["c0"].documents_read == [50, 50]
    assert plan.rotations["c1"].documents_read == [50, 50]
    first, second = (copies_of(plan, 1, [n << 50 for n in range(90)], p) for p in (0, 1))
    # Together, the passes have read all documents, before they read any for the second time.
    assert (first + second).min() == 1
    assert Counter((first + second).tolist()) == {1: 80, 2: 10}


def test_a_corpus_without_training_documents_is_an_error(tmp_path):
    paths = measured_files(tmp_path, [(0, 1, 4)], 1)
    with pytest.raises(UserError, match="the corpus c1 of the mixture has no training document"):
        plan_mixing(mixture_of([1, 1]), paths, 1)


def test_so_many_copies_that_a_shard_does_not_fit_in_memory_are_an_error(tmp_path):
    documents = [(0, 1, 1000), *((1, n << 40, 1 << 20) for n in range(1000))]
    fault = r"a document of the corpus c0 is read 524,\d+ times in a pass.* lower the share"
    with pytest.raises(UserError, match=fault):
        plan_mixing(mixture_of([1, 1]), measured_files(tmp_path, documents, 20), 1)
    plan_mixing(mixture_of([1, 99]), measured_files(tmp_path, documents, 20), 1)


# Documents of a batch, corpus by corpus, with how often each is wanted.
BATCHES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12).map(
    lambda rows: sorted(rows, key=lambda row: -row[1])
)


@given(BATCHES, st.integers(0, 99))
def test_others_are_of_the_same_corpus_and_never_a_copy(rows, seed):
    copies, corpus = (
        (np.array(column, np.int64) for column in zip(*rows, strict=True))
        if rows
        else (np.zeros(0, np.int64),) * 2
    )
    others = Others.of(copies, corpus)
    original = np.repeat(np.arange(len(copies)), copies)
    assert others.exist == (len(set(original.tolist())) > 1)
    if others.exist:
        documents = np.repeat(np.arange(len(original)), 20)
        drawn = others.draw(documents, np.random.default_rng(seed))
        assert (original[drawn] != original[documents]).all()
        for document, other in zip(documents.tolist(), drawn.tolist(), strict=True):
            own = corpus[original[document]]
            has_sibling = ((corpus == own) & (copies > 0)).sum() > 1
            assert not has_sibling or corpus[original[other]] == own


def test_all_others_are_drawn():
    others = Others.of(np.array([2, 1, 0, 3, 1]), np.array([0, 0, 0, 0, 1]))
    drawn = others.draw(np.zeros(2000, np.int64), np.random.default_rng(0))
    assert Counter(drawn.tolist()).keys() == {2, 3, 4, 5}
    alone = others.draw(np.full(2000, 6), np.random.default_rng(0))
    assert Counter(alone.tolist()).keys() == {0, 1, 2, 3, 4, 5}


@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=6),
    st.data(),
)
def test_mixed_documents_are_whole_and_adjacent(batch_of, lengths, data):
    documents = batch_of(lengths, word_seed=1)
    copies = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths))),
        np.int64,
    )
    mixed = mix_documents(documents, copies, np.zeros(len(lengths), np.int64))
    wanted = [number for number, count in enumerate(copies) for _ in range(count)]
    starts = np.cumsum([0, *map(sum, lengths)])
    ids = [documents.ids[starts[n] : starts[n + 1]] for n in wanted]
    word_starts = [documents.word_starts[starts[n] : starts[n + 1]] for n in wanted]
    assert mixed.ids.tolist() == [each for part in ids for each in part]
    assert mixed.ids.dtype == documents.ids.dtype
    assert mixed.word_starts.tolist() == [each for part in word_starts for each in part]
    assert (
        mixed.sentence_ends.tolist() == np.cumsum([x for n in wanted for x in lengths[n]]).tolist()
    )
    assert mixed.document_ends.tolist() == np.cumsum([len(lengths[n]) for n in wanted]).tolist()


@given(st.lists(st.integers(0, 4), min_size=2, max_size=5), st.integers(0, 9))
def test_a_random_segment_never_comes_from_a_copy(batch_of, copies, seed):
    documents = batch_of([[3, 2, 4, 5, 3, 3]] * len(copies))
    # The documents are told from each other by their ids, which copies share.
    corpus = np.arange(len(copies)) // 2
    mixed = mix_documents(documents, np.array(copies), corpus)
    pairs = plan_segment_pairs(mixed, 16, 0.1, np.random.default_rng(seed))
    of_token = mixed.ids // 20
    own, other = of_token[pairs.a_start], of_token[pairs.b_start]
    assert (own[pairs.labels] != other[pairs.labels]).all()
    assert (own[~pairs.labels] == other[~pairs.labels]).all()
    num_texts = sum(count > 0 for count in copies)
    assert pairs.labels.any() == (num_texts > 1)


def test_documents_are_measured_in_the_order_in_which_they_are_read(tmp_path, tokenized_document):
    """A corpus whose name begins another's, too: between them, the order of names is another."""
    bucket = Bucket("train", 0)
    path = tmp_path / "split-00000.parquet"
    documents = [
        tokenized_document("b/x", 0, [4]),
        tokenized_document("a/x", 9, [2, 3]),
        tokenized_document("a-b/x", 5, [1, 1, 1]),
        tokenized_document("a/x", 4, [7]),
    ]
    write_documents(path, [{bucket: documents[:2]}, {bucket: documents[2:]}])
    groups = [RowGroup(path, 1), RowGroup(path, 0)]
    table = measure_documents(groups, ["a", "a-b", "b"], seed=1)
    write_measured(tmp_path / "measured", table)
    measured = read_measured(tmp_path / "measured")
    batch = read_documents_of_bucket(groups, np.dtype(np.uint16))
    ends = batch.sentence_ends[batch.document_ends - 1]
    assert measured["tokens"].tolist() == np.diff(ends, prepend=0).tolist() == [3, 7, 5, 4]
    assert measured["corpus"].tolist() == [1, 0, 0, 2]
    assert len(set(measured["key"].tolist())) == 4
    # The keys follow from the id and the seed alone.
    alone = measure_documents([RowGroup(path, 0)], ["a", "b"], seed=1)
    assert alone["key"].to_pylist() == measured["key"][[2, 3]].tolist()
    other = measure_documents(groups, ["a", "a-b", "b"], seed=2)
    assert not set(other["key"].to_pylist()) & set(measured["key"].tolist())
    dropped = pa.table({"file": ["a/x"], "offset": [9]})
    rest = measure_documents(groups, ["a", "a-b", "b"], 1, dropped)
    assert rest["tokens"].to_pylist() == [3, 7, 4]
    assert measure_documents([], ["a"], 1).num_rows == 0
