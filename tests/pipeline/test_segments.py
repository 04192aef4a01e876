"""Sentence order and single segments, from their plans to the data sets that are made of them."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.generate import describe
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inspection import describe_instance, read_sequences
from pipeline.manifest import MANIFEST_NAME, PLAN_NAME, DataSet, Manifest
from pipeline.options import InstanceOptions
from pipeline.segments import plan_ordered_segments, plan_pairs, plan_single_segments
from pipeline.sentence_pairs import SentencePairs
from pipeline.shards import make_instances
from pipeline.verification import verify
from pipeline.vocabulary import Vocabulary

SHAPES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=10), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32)
SHARES = st.sampled_from([0.0, 0.3, 1.0])
OTHERS = [SentencePairs.ORDER, SentencePairs.NONE]


def planned(plan, batch, seq_length=16, short=0.0, seed=1):
    return plan(batch, seq_length, short, np.random.default_rng(seed))


def spans_of(pairs):
    columns = (pairs.a_start, pairs.a_length, pairs.b_start, pairs.b_length)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_pairs_of_a_document_are_exactly_these(batch_of):
    """13 tokens: the fourth sentence waits, so that the fifth is not alone."""
    found = set()
    for seed in range(40):
        pairs = planned(plan_ordered_segments, batch_of([[4] * 5]), seed=seed)
        assert pairs.labels.tolist() == (pairs.a_start > pairs.b_start).tolist()
        assert (pairs.chunks_without_next, pairs.tokens_truncated) == (0, 0)
        found |= set(spans_of(pairs))
    assert found == {
        *((0, 4, 4, 8), (4, 8, 0, 4), (0, 8, 8, 4), (8, 4, 0, 8)),
        *((12, 4, 16, 4), (16, 4, 12, 4)),
    }


@pytest.mark.parametrize(
    ("document", "ends"),
    [([20, 2, 2], [2, 3]), ([3, 20, 20], [3]), ([20] * 4, [2, 4]), ([1] * 14, [12, 14])],
)
def test_no_sentence_of_a_longer_document_is_alone(batch_of, document, ends):
    pairs = planned(plan_ordered_segments, batch_of([document]), seq_length=64, short=0.0)
    assert len(pairs) == 1
    short = planned(plan_ordered_segments, batch_of([document]), seq_length=16)
    assert len(short) == (len(ends) if ends[0] + 1 < len(document) else 1)
    assert short.chunks_without_next == 0


def test_documents_of_one_sentence_have_no_order_and_are_counted(batch_of):
    pairs = planned(plan_ordered_segments, batch_of([[3], [4, 4], [30]]))
    assert spans_of(pairs) in ([(3, 4, 7, 4)], [(7, 4, 3, 4)])
    assert pairs.chunks_without_next == 2


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(8, 60), SHARES, SEEDS)
def test_pairs_in_order_hold_each_sentence_once(batch_of, documents, seq_length, short, seed):
    batch = batch_of(documents)
    # Long enough for all, so that the whole segments show.
    whole = planned(plan_ordered_segments, batch, 1 << 14, 0.0, seed)
    pairs = planned(plan_ordered_segments, batch, seq_length, short, seed)
    assert pairs.chunks_without_next == sum(len(document) == 1 for document in documents)
    document_starts = np.cumsum([0, *map(sum, documents)])
    boundaries = {0, *batch.sentence_ends.tolist()}
    for each in (whole, pairs):
        num_tokens = int((each.a_length + each.b_length).sum())
        assert num_tokens + each.tokens_truncated == sum(map(sum, documents)) - sum(
            document[0] for document in documents if len(document) == 1
        )
        for a_start, a_length, b_start, b_length in spans_of(each):
            first, last = min(a_start, b_start), max(a_start + a_length, b_start + b_length)
            of_first, of_last = np.searchsorted(document_starts, [first, last - 1], "right")
            assert of_first == of_last
            assert min(a_length, b_length) >= 1
            if each is whole:
                assert a_length + b_length == last - first
                assert {a_start, b_start, first, last} <= boundaries
    assert (pairs.a_length + pairs.b_length).max(initial=0) <= seq_length - 3
    assert (pairs.labels == (pairs.a_start > pairs.b_start)).all()


def test_half_of_the_pairs_are_swapped(batch_of):
    pairs = planned(plan_ordered_segments, batch_of([[4, 4]] * 4000))
    assert pairs.labels.mean() == pytest.approx(0.5, abs=0.03)
    position = np.arange(len(pairs))
    assert abs(np.corrcoef(position, pairs.labels)[0, 1]) < 0.1
    assert abs(np.corrcoef(position, pairs.a_start)[0, 1]) < 0.1


def test_single_segments_of_documents_are_exactly_these(batch_of):
    pairs = planned(plan_single_segments, batch_of([[4, 4, 4, 4, 4], [3], [14], [15, 2]]))
    (*others, cut) = sorted(pairs.a_length.tolist()), pairs.tokens_truncated
    assert others == [[2, 3, 8, 12, 14, 14]]
    assert cut == 1
    starts = dict(zip(pairs.a_start.tolist(), pairs.a_length.tolist(), strict=True))
    assert starts.pop(37, None) or starts.pop(38)  # the long one is cut in front or at its end
    assert starts == {0: 12, 12: 8, 20: 3, 23: 14, 52: 2}
    assert not pairs.labels.any()
    assert (pairs.lengths == pairs.a_length + 2).all()


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(8, 60), SHARES, SEEDS)
def test_single_segments_hold_each_sentence_once(batch_of, documents, seq_length, short, seed):
    batch = batch_of(documents)
    pairs = planned(plan_single_segments, batch, seq_length, short, seed)
    assert pairs.lengths.max() <= seq_length
    assert pairs.a_length.sum() + pairs.tokens_truncated == sum(map(sum, documents))
    assert pairs.tokens_truncated == sum(
        max(length - (seq_length - 2), 0) for document in documents for length in document
    )
    ends = {0, *batch.sentence_ends.tolist()}
    document_ends = np.cumsum([sum(document) for document in documents]).tolist()
    spans = sorted(zip(pairs.a_start.tolist(), pairs.a_length.tolist(), strict=True))
    for number, (start, length) in enumerate(spans):
        if length < seq_length - 2:
            assert {start, start + length} <= ends
        assert np.searchsorted(document_ends, start, "right") == np.searchsorted(
            document_ends, start + length - 1, "right"
        )
        # Without short targets, the next sentence would not have fitted.
        if not short and number + 1 < len(spans) and start + length not in document_ends:
            following = spans[number + 1][0]
            sentence = min(end for end in ends if end > following) - following
            assert length + sentence > seq_length - 2


@pytest.mark.parametrize("pairs", SentencePairs)
def test_no_documents_give_no_pairs(batch_of, pairs):
    counts = Counter()
    options = InstanceOptions(sentence_pairs=pairs)
    assert len(plan_pairs(batch_of([]), options, np.random.default_rng(1), counts)) == 0
    assert not any(counts.values())


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(8, 40), st.sampled_from(OTHERS), st.booleans(), SEEDS)
def test_instances_are_laid_out_as_planned(
    vocabulary, batch_of, documents, seq_length, pairs, whole_words, seed
):
    batch = batch_of(documents, first_id=5, word_seed=seed)
    options = InstanceOptions(
        max_seq_length=seq_length,
        masked_lm_prob=0.5,
        do_whole_word_mask=whole_words,
        sentence_pairs=pairs,
    )
    plan = plan_pairs(batch, options, np.random.default_rng(seed), Counter())
    batches = make_instances(batch, vocabulary, options, np.random.default_rng(seed), Counter())
    rows = [
        {name: values[row] for name, values in instances.items()}
        for instances in batches
        for row in range(len(instances["input_ids"]))
    ]
    assert len(rows) == len(plan)
    for number, row in enumerate(rows):
        a, b = (
            batch.ids[start[number] : start[number] + length[number]].tolist()
            for start, length in ((plan.a_start, plan.a_length), (plan.b_start, plan.b_length))
        )
        expected, segments = [2, *a, 3], [0] * (len(a) + 2)
        if pairs == SentencePairs.ORDER:
            expected, segments = [*expected, *b, 3], segments + [1] * (len(b) + 1)
        ids, is_real = row["input_ids"].tolist(), row["masked_lm_weights"] > 0
        labels = row["masked_lm_positions"][is_real], row["masked_lm_ids"][is_real]
        masked = dict(zip(*(values.tolist() for values in labels), strict=True))
        for position, label in masked.items():
            ids[position] = label
        padding = [0] * (seq_length - len(expected))
        assert ids == expected + padding
        assert row["segment_ids"].tolist() == segments + padding
        assert row["input_mask"].tolist() == [1] * len(expected) + padding
        assert not {0, len(a) + 1, len(expected) - 1} & set(masked)
        assert max(masked, default=0) < len(expected)
        assert row["next_sentence_labels"].tolist() == [plan.labels[number]]


@pytest.mark.parametrize("pairs", SentencePairs)
@pytest.mark.parametrize("seq_length", [2048, 8192])
def test_long_documents_fill_long_sequences(vocabulary, batch_of, pairs, seq_length):
    """P follows from the length, and as many tokens are masked."""
    batch = batch_of([[23] * 3000] * 3, word_seed=1)
    batch.ids[:] = batch.ids % 2000 + 5
    options = InstanceOptions(max_seq_length=seq_length, short_seq_prob=0.0, sentence_pairs=pairs)
    assert options.max_predictions_per_seq == {2048: 308, 8192: 1229}[seq_length]
    made = list(make_instances(batch, vocabulary, options, np.random.default_rng(1), Counter()))
    names = ("input_mask", "masked_lm_weights", "masked_lm_positions")
    mask, weights, positions = (np.concatenate([each[name] for each in made]) for name in names)
    lengths = mask.sum(axis=1)
    # Another sentence does not fit in, except after a document's end.
    assert np.quantile(lengths, 0.3) > seq_length - 24
    assert lengths.mean() > 0.85 * seq_length
    np.testing.assert_allclose(weights.sum(axis=1) / lengths, 0.15, atol=0.01)
    assert (positions.max(axis=1) > lengths - 100.0).all()


@pytest.fixture(scope="module")
def vocabulary(write_vocabulary):
    return Vocabulary(write_vocabulary(*(f"t{number}" for number in range(2000))))


@pytest.fixture(scope="module", params=[(pairs, row) for pairs in OTHERS for row in (0, 48)])
def made(request, corpus, tmp_path_factory):
    """A data set without the original's pairs, and its options: single sequences, and rows."""
    pairs, row_length = request.param
    options = replace(
        corpus,
        output_dir=tmp_path_factory.mktemp("pairs") / "data",
        instances=replace(
            corpus.instances, sentence_pairs=pairs, packed_row_length=row_length, dupe_factor=5
        ),
    )
    return DataSet(options.output_dir, generate(options, PipelineOptions([]))), options


def test_a_data_set_tells_which_pairs_it_has(made):
    data_set, options = made
    manifest, pairs = data_set.manifest, options.instances.sentence_pairs
    assert DataSet.read(data_set.directory).manifest == manifest
    assert manifest.sentence_pairs == pairs
    assert list(verify(data_set)) == []
    is_packed = bool(options.instances.packed_row_length)
    content = json.loads((data_set.directory / MANIFEST_NAME).read_text("utf-8"))
    assert content["format_version"] == 1 + (is_packed or pairs == SentencePairs.NONE)
    assert manifest.row_limits.sequences == (6 if is_packed else 1)
    train, summary = manifest.statistics["train"], describe(manifest, data_set.directory)
    assert not [name for name in train if "random_next" in name]
    assert "random next" not in summary
    assert manifest.health == []
    assert ("% swapped" in summary) == (pairs == SentencePairs.ORDER)
    if pairs == SentencePairs.ORDER:
        sequences = train.get("sequences", train["instances"])
        assert train["share_swapped"] == round(train["swapped"] / sequences, 6)
        assert train["share_swapped"] == pytest.approx(0.5, abs=0.1)
    else:
        assert "share_swapped" not in train
        assert manifest.features_of("train")["segment_ids"].limit == 1


def test_people_see_which_pairs_a_data_set_has(made):
    data_set, options = made
    vocabulary = Vocabulary(data_set.vocabulary)
    page = (data_set.directory / "report.html").read_text("utf-8")
    assert "Random B" not in page
    assert "is random" not in page
    shard = data_set.manifest.shards[0]
    sequences = [each for row in read_sequences(data_set, shard) for each in row]
    described = [
        describe_instance(sequence, vocabulary, options.instances.sentence_pairs)
        for sequence in sequences
    ]
    if options.instances.sentence_pairs == SentencePairs.NONE:
        assert {len(text.splitlines()) for text in described} == {2}
        assert all(text.endswith("[SEP]") and " B " not in text for text in described)
        assert "<dt>Text</dt>" in page
        assert "Swapped" not in page
        assert ": B " not in page
    else:
        relations = {text.splitlines()[0].partition("; ")[2] for text in described}
        assert relations == {"B follows A", "B precedes A"}
        assert "Swapped pairs" in page
        assert "B precedes A" in page


def test_other_pairs_are_another_data_set(made):
    data_set, options = made
    assert generate(options, PipelineOptions([])) == data_set.manifest
    other = replace(options.instances, sentence_pairs=SentencePairs.NEXT)
    pairs = str(options.instances.sentence_pairs)
    with pytest.raises(UserError, match=f"sentence_pairs '{pairs}', not None"):
        generate(replace(options, instances=other), PipelineOptions([]))


def test_the_original_pairs_are_not_named(data_set):
    directory, manifest = data_set
    assert manifest.sentence_pairs == SentencePairs.NEXT
    for name in (MANIFEST_NAME, PLAN_NAME):
        assert "sentence_pairs" not in (directory / name).read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 1}, "its records are not those of its format version"),
        ({"options": {"sentence_pairs": "some"}}, "unknown sentence_pairs"),
        ({"options": {"sentence_pairs": ["none"]}}, "unknown sentence_pairs"),
        ({"options": {}}, "its records are not those of its format version"),
        ({"options": {"packed_row_length": 64}}, "does not tell how long its rows are"),
    ],
)
def test_a_manifest_that_contradicts_its_pairs_is_damaged(tmp_path, changes, says):
    manifest = Manifest(
        **{
            "max_seq_length": 16,
            "max_predictions_per_seq": 3,
            "do_lower_case": True,
            "vocab_size": 9,
            "vocab_sha256": "0" * 64,
            "options": {"sentence_pairs": "none"},
            "statistics": {},
            "shards": [],
            "format_version": 2,
        }
    )
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path).sentence_pairs == SentencePairs.NONE
    replace(manifest, **changes).write(tmp_path)
    with pytest.raises(UserError, match=says):
        Manifest.read(tmp_path)


def test_documents_of_one_sentence_are_an_error_in_order_and_none_without_pairs(options, tmp_path):
    (tmp_path / "short.txt").write_text("w1 w2\n\n" * 20)
    given = replace(options, input_patterns=[f"{tmp_path}/short.txt"], eval_fraction=0.0)
    by_order, alone = (
        replace(given, instances=replace(given.instances, sentence_pairs=pairs)) for pairs in OTHERS
    )
    with pytest.raises(UserError, match="a document needs two sentences"):
        generate(by_order, PipelineOptions([]))
    train = generate(alone, PipelineOptions([])).statistics["train"]
    assert train["instances"] == 40
