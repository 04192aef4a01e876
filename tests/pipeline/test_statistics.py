from collections import Counter

import pytest

from pipeline.manifest import Shard
from pipeline.statistics import BuildResults, check_documents_agree, sum_counters, summarize


def shard(split="train", pass_index=0, documents=0, **counts):
    return (
        Shard(f"{split}-{pass_index}", split, pass_index, documents, 0, 0, 0, ""),
        Counter(documents=documents, **counts),
    )


def results(*shards, read=10, tokenized=9, without_tokens=1):
    corpus = Counter(
        documents_read=read,
        documents_tokenized=tokenized,
        documents_without_tokens=without_tokens,
    )
    return BuildResults(corpus, list(shards))


def test_sums_keep_what_is_zero():
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
    check_documents_agree(results(shard(documents=0), read=2, tokenized=0, without_tokens=2))


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
    assert summary["train"] == {
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
    }
    assert summary["eval"]["share_padding"] == 0.0
    assert summary["eval"]["share_masked_by_mask"] == 0.0


def test_a_split_without_instances_has_no_summary():
    summary = summarize(results(shard(instances=1, tokens=4)), max_seq_length=8)
    assert set(summary) == {"corpus", "train"}
    assert summary["corpus"]["share_unknown"] == 0.0
