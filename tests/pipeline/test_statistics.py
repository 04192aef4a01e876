from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest import Shard
from pipeline.mixing import MixingPlan, Rotation
from pipeline.receipts import read_receipt, write_receipt
from pipeline.statistics import (
    DROP_REASONS,
    BuildResults,
    InstanceHistograms,
    ShardResults,
    check_documents_agree,
    describe_corpora,
    describe_pairs,
    sum_counters,
    summarize,
)
from pipeline.vocabulary import Vocabulary

SHARES = (
    "share_random_next share_padding share_masked share_masked_by_mask share_masked_kept "
    "share_masked_by_random"
).split()


def shard(split="train", pass_index=0, documents=0, lengths=(), masked_tokens=(), **counts):
    return ShardResults(
        Shard(f"{split}-{pass_index}", split, pass_index, documents, 0, 0, 0, ""),
        Counter(documents=documents, **counts),
        Counter(dict(lengths)),
        Counter(dict(masked_tokens)),
    )


def results(*shards, read=10, tokenized=9, **dropped):
    corpus = Counter(
        documents_read=read,
        documents_tokenized=tokenized,
        **(dropped or {"documents_without_tokens": 1}),
    )
    return BuildResults(corpus, list(shards))


def test_sums_keep_zero_entries():
    total = sum_counters([Counter(a=1, b=0), Counter(a=2, c=0), Counter()])
    assert dict(total) == {"a": 3, "b": 0, "c": 0}
    assert sum_counters([]) == Counter()


def test_documents_that_agree_pass():
    check_documents_agree(results(shard(documents=9)))
    check_documents_agree(
        results(
            shard(pass_index=0, documents=4),
            shard(pass_index=0, documents=3),
            shard(pass_index=1, documents=7),
            shard("eval", documents=2),
        )
    )
    check_documents_agree(
        results(shard(documents=0), read=2, tokenized=0, documents_without_tokens=2)
    )


def test_dropped_documents_do_not_count_as_lost():
    dropped = {
        "documents_too_short": 5,
        "documents_without_tokens": 1,
        "documents_duplicate": 3,
        "records_skipped": 77,
    }
    check_documents_agree(
        results(
            shard(documents=4),
            shard(pass_index=1, documents=4),
            shard("eval", documents=2),
            read=15,
            **dropped,
        )
    )


def test_passes_over_a_mixture_have_the_documents_of_their_plan():
    rotation = Rotation(
        documents=7,
        tokens=70,
        shares=[1, 1],
        turns=[0, 1, 2],
        keys=[0, 0, 0],
        documents_read=[6, 9],
        tokens_read=[60, 90],
    )
    of_passes = [shard(documents=6), shard(pass_index=1, documents=9), shard("eval", documents=2)]
    plan = MixingPlan({"a": rotation})
    check_documents_agree(replace(results(*of_passes), mixing=plan))
    with pytest.raises(RuntimeError, match="built 8 in pass 1"):
        check_documents_agree(
            replace(
                results(of_passes[0], shard(pass_index=1, documents=8), of_passes[2]), mixing=plan
            )
        )
    with pytest.raises(RuntimeError, match="tokenized 9 documents but measured 8"):
        check_documents_agree(
            replace(results(*of_passes[:2], shard("eval", documents=1)), mixing=plan)
        )


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(results(shard(documents=8)), id="lost between the stages"),
        pytest.param(results(shard(documents=10)), id="repeated between the stages"),
        pytest.param(results(shard(documents=9), read=11), id="lost while tokenized"),
        pytest.param(
            results(shard(documents=9), shard(pass_index=1, documents=8)), id="lost in one pass"
        ),
        pytest.param(results(shard(documents=9), shard("eval", documents=1)), id="in both splits"),
        pytest.param(
            results(shard(documents=9), read=9, documents_duplicate=2), id="duplicates built"
        ),
        pytest.param(
            results(shard(documents=6), read=9, documents_duplicate=2), id="too many dropped"
        ),
        pytest.param(
            results(shard(documents=9), read=10, documents_too_short=2), id="short ones tokenized"
        ),
    ],
)
def test_lost_or_repeated_documents_are_an_error(wrong):
    with pytest.raises(RuntimeError, match="documents"):
        check_documents_agree(wrong)


def test_a_summary_holds_counts_and_shares():
    built = results(
        shard(instances=3, tokens=50, random_next=2, masked=8, masked_by_mask=5, masked_kept=1),
        shard(pass_index=1, instances=1, tokens=10, masked_by_random=2, instances_without_mask=0),
        shard("eval", instances=2, tokens=32, random_next=1),
    )
    built.corpus.update(tokens=100, unknown_tokens=3)
    summary = summarize(built, max_seq_length=16)
    assert summary["corpus"]["documents_read"] == 10
    assert summary["corpus"]["share_unknown"] == 0.03
    train = dict(summary["train"])
    assert not any(train.pop("instances_by_length").values())
    assert train == {
        "documents": 0,
        "instances": 4,
        "instances_without_mask": 0,
        "masked": 8,
        "masked_by_mask": 5,
        "masked_by_random": 2,
        "masked_kept": 1,
        "random_next": 2,
        "tokens": 60,
        "share_random_next": 0.5,
        "share_padding": 0.0625,
        "share_masked": 0.133333,
        "share_masked_by_mask": 0.625,
        "share_masked_kept": 0.125,
        "share_masked_by_random": 0.25,
        "most_masked_tokens": {},
    }
    assert summary["eval"]["share_padding"] == 0.0
    assert summary["eval"]["share_masked_by_mask"] == 0.0


def test_a_summary_has_all_drop_counts_even_if_they_are_zero():
    built = results(shard(documents=9, instances=1, tokens=8), documents_too_short=1)
    corpus = summarize(built, max_seq_length=8)["corpus"]
    assert {reason: corpus[reason] for reason in DROP_REASONS} == {
        "records_skipped": 0,
        "lines_outside_documents": 0,
        "lines_with_invalid_utf8": 0,
        "documents_too_short": 1,
        "documents_without_tokens": 0,
        "documents_duplicate": 0,
        "sentences_without_tokens": 0,
    }


def test_a_document_is_counted_once_for_all_passes():
    built = results(
        shard(documents=4, instances=1),
        shard(documents=3, instances=1),
        shard(pass_index=1, documents=4, instances=1),
        shard(pass_index=1, documents=3, instances=1),
        shard("eval", documents=2, instances=1),
    )
    summary = summarize(built, max_seq_length=8)
    assert (summary["train"]["documents"], summary["eval"]["documents"]) == (7, 2)


def test_a_split_without_instances_has_no_summary():
    summary = summarize(results(shard(instances=1, tokens=4)), max_seq_length=8)
    assert set(summary) == {"corpus", "train"}
    assert summary["corpus"]["share_unknown"] == 0.0


@given(st.integers(8, 700), st.data())
def test_ranges_of_lengths_hold_every_instance_once(max_seq_length, data):
    lengths = data.draw(
        st.dictionaries(st.integers(1, max_seq_length), st.integers(1, 1000), max_size=20)
    )
    built = results(shard(instances=1, lengths=lengths.items()), shard(instances=1, lengths={5: 2}))
    ranges = summarize(built, max_seq_length)["train"]["instances_by_length"]
    assert sum(ranges.values()) == sum(lengths.values()) + 2
    bounds = [tuple(map(int, name.split("-"))) for name in ranges]
    assert [number for first, last in bounds for number in range(first, last + 1)] == list(
        range(1, max_seq_length + 1)
    )
    assert 8 <= len(ranges) <= 16
    for (first, last), name in zip(bounds, ranges, strict=True):
        expected = sum(lengths.get(length, 0) for length in range(first, last + 1))
        assert ranges[name] == expected + 2 * (first <= 5 <= last)


def test_the_most_masked_tokens_cover_all_shards_in_descending_order():
    first = {f"t{number}": 100 - number for number in range(40)}
    second = {"t39": 500, "z": 99, "a": 99}
    built = results(
        shard(instances=1, masked_tokens=first.items()),
        shard(instances=1, masked_tokens=second.items()),
        shard("eval", instances=1, masked_tokens={"e": 1}.items()),
    )
    summary = summarize(built, max_seq_length=8)
    assert list(summary["train"]["most_masked_tokens"].items())[:5] == [
        ("t39", 561),
        ("t0", 100),
        ("a", 99),
        ("t1", 99),
        ("z", 99),
    ]
    assert len(summary["train"]["most_masked_tokens"]) == 30
    assert summary["eval"]["most_masked_tokens"] == {"e": 1}


@pytest.fixture(scope="module")
def vocabulary(write_vocabulary):
    return Vocabulary(write_vocabulary(*(f"t{number}" for number in range(5, 300))))


def batch_of_instances(lengths, labels, max_seq_length):
    """Makes instances with the given lengths and masked tokens; 0 pads the labels."""
    labels = np.array(labels, np.int64).reshape(len(lengths), -1)
    return {
        "input_mask": (np.arange(max_seq_length) < np.array(lengths)[:, None]).astype(np.uint8),
        "masked_lm_ids": labels,
        "masked_lm_weights": (labels > 0).astype(np.float32),
    }


def test_lengths_and_masked_tokens_are_counted_over_all_batches(vocabulary):
    histograms = InstanceHistograms(12, vocabulary)
    assert histograms.lengths() == histograms.masked_tokens() == Counter()
    histograms.add(batch_of_instances([3, 12, 3], [[7, 9], [7, 0], [0, 0]], 12))
    histograms.add(batch_of_instances([5], [[9, 7]], 12))
    assert histograms.lengths() == {3: 2, 12: 1, 5: 1}
    assert histograms.masked_tokens() == {"t7": 3, "t9": 2}


def test_a_label_of_id_0_counts_and_padding_does_not(vocabulary):
    histograms = InstanceHistograms(8, vocabulary)
    instances = batch_of_instances([8], [[7, 0, 0]], 8)
    instances["masked_lm_weights"] = np.array([[1.0, 1.0, 0.0]], np.float32)
    histograms.add(instances)
    assert histograms.masked_tokens() == {"t7": 1, "[PAD]": 1}


def test_long_instances_with_a_byte_mask_are_counted(vocabulary):
    """A sum of 300 ones exceeds the range of the mask's dtype."""
    histograms = InstanceHistograms(512, vocabulary)
    histograms.add(batch_of_instances([300, 512], [[7], [7]], 512))
    assert histograms.lengths() == {300: 1, 512: 1}


def test_a_shard_keeps_the_counts_of_a_hundred_tokens(vocabulary):
    histograms = InstanceHistograms(8, vocabulary)
    labels = [5 + number for number in range(150) for _ in range(150 - number)]
    histograms.add(batch_of_instances([8] * len(labels), labels, 8))
    assert histograms.masked_tokens() == {f"t{5 + n}": 150 - n for n in range(100)}


def test_results_of_a_shard_survive_json(tmp_path):
    built = shard("eval", 0, 4, {3: 2, 128: 1}.items(), {"##ä": 3, "1": 2}.items(), instances=3)
    write_receipt(tmp_path / "shard", built)
    again = read_receipt(tmp_path / "shard", ShardResults)
    assert again == built
    assert again.lengths[128] == 1
    assert summarize(results(again), 128) == summarize(results(built), 128)


def test_shares_without_tokens_are_0():
    summary = summarize(results(shard(instances=1, tokens=0, random_next=0)), max_seq_length=8)
    assert {name: summary["train"][name] for name in SHARES} == {
        **dict.fromkeys(SHARES, 0.0),
        "share_padding": 1.0,
    }


@pytest.mark.parametrize(
    ("counts", "says"),
    [({"random_next": 3}, "75.0% random next, "), ({"swapped": 1}, "25.0% swapped, "), ({}, "")],
)
def test_a_summary_has_the_share_of_its_own_pairs(counts, says):
    train = summarize(results(shard(instances=4, tokens=40, **counts)), max_seq_length=16)["train"]
    shares = {f"share_{name}": count / 4 for name, count in counts.items()}
    pairs = ("share_random_next", "share_swapped")
    assert {name: train[name] for name in pairs if name in train} == shares
    assert describe_pairs(train) == says


def test_corpora_are_described_with_their_shares_in_each_pass():
    facts = {
        "documents": 1200,
        "tokens": 34_000,
        "share_unknown": 0.00123,
        "shares_asked": [0.7, 0.5],
        "shares_reached": [0.69996, 0.5],
        "repeats": [1.5, 1.5],
    }
    lines = describe_corpora({"corpora": {"en": facts, "german": facts}})
    assert lines[0] == (
        "en     1,200 documents, 34,000 tokens (0.12% [UNK]); 70.0% → 50.0% of the training "
        "tokens, asked 70.0% → 50.0%; read 1.5 times a pass"
    )
    assert lines[1].startswith("german 1,200 documents")
    assert describe_corpora({}) == []
    (line,) = describe_corpora({"corpora": {"en": facts | {"repeats": [1, 3, 2, 3, 0.5]}}})
    assert line.endswith("read 0.5 to 3 times a pass")
