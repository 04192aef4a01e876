from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buckets import Bucket
from pipeline.corpus import (
    RowGroup,
    read_documents_of_bucket,
    tokenize_documents,
    write_documents,
)
from pipeline.documents import Document
from pipeline.options import InstanceOptions, MaskedWordAction, RandomToken
from pipeline.records import decode_example, encode_examples
from pipeline.segment_pairs import plan_segment_pairs
from pipeline.shards import make_instances
from pipeline.tokenization import FullTokenizer
from pipeline.vocabulary import Vocabulary
from pipeline.word_segmentation import WordFinder

NUM_UNUSED = 15
FIRST_ID = 5 + NUM_UNUSED

SHAPES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=1, max_size=6)


@st.composite
def instance_options(draw):
    max_seq_length = draw(st.integers(8, 48))
    whole_words = draw(st.booleans())
    return InstanceOptions(
        max_seq_length=max_seq_length,
        max_predictions_per_seq=draw(st.integers(1, min(12, max_seq_length))),
        masked_lm_prob=draw(st.sampled_from([0.05, 0.15, 0.5, 0.9])),
        short_seq_prob=draw(st.sampled_from([0.0, 0.1, 1.0])),
        do_whole_word_mask=whole_words,
        max_ngram_size=draw(st.integers(1, 3)) if whole_words else 1,
        masked_word_action=draw(st.sampled_from(MaskedWordAction)),
        random_token=draw(st.sampled_from(RandomToken)),
    )


@pytest.fixture(scope="module")
def vocabulary(write_vocabulary):
    """Special tokens, unused ones, and one token for each position of a batch."""
    unused = (f"[unused{number}]" for number in range(NUM_UNUSED))
    return Vocabulary(write_vocabulary(*unused, *(f"t{number}" for number in range(600))))


def stack(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def segments_of(instance, vocabulary):
    """Checks the layout; gives the labels-restored ids and the columns of A and of B."""
    length = int(instance["input_mask"].sum())
    first_of_b = int(np.argmax(instance["segment_ids"]))
    seq_length = len(instance["input_ids"])
    assert instance["input_mask"].tolist() == [1] * length + [0] * (seq_length - length)
    assert instance["segment_ids"].tolist() == (
        [0] * first_of_b + [1] * (length - first_of_b) + [0] * (seq_length - length)
    )
    ids = instance["input_ids"].astype(np.int64)
    is_real = instance["masked_lm_weights"] > 0
    ids[instance["masked_lm_positions"][is_real]] = instance["masked_lm_ids"][is_real]
    assert ids[0] == vocabulary.ids["[CLS]"]
    assert ids[first_of_b - 1] == ids[length - 1] == vocabulary.ids["[SEP]"]
    assert not ids[length:].any()
    return ids, list(range(1, first_of_b - 1)), list(range(first_of_b, length - 1))


def words_of(columns, ids, batch, do_whole_word_mask):
    """The words of a segment, as lists of columns; a segment's first piece begins a word."""
    words = []
    for column in columns:
        begins = batch.word_starts[ids[column] - FIRST_ID] or not do_whole_word_mask
        if begins or column == columns[0]:
            words.append([])
        words[-1].append(column)
    return words


def check_segments(ids, columns_of_a, columns_of_b, label, batch, max_tokens):
    """A and B are consecutive tokens of documents, and the label is true."""
    token_ends = batch.sentence_ends[batch.document_ends - 1]
    spans, documents = [], []
    for columns in (columns_of_a, columns_of_b):
        tokens = ids[columns] - FIRST_ID
        assert len(tokens) >= 1
        assert tokens.tolist() == list(range(tokens[0], tokens[0] + len(tokens)))
        first, last = np.searchsorted(token_ends, [tokens[0], tokens[-1]], side="right")
        assert first == last < len(token_ends)
        spans.append((tokens[0], tokens[-1] + 1))
        documents.append(first)
    num_tokens = len(columns_of_a) + len(columns_of_b)
    assert num_tokens <= max_tokens
    assert label == (documents[0] != documents[1])
    (_, a_end), (b_start, _) = spans
    if label == 0:
        between = batch.sentence_ends[
            (batch.sentence_ends >= a_end) & (batch.sentence_ends <= b_start)
        ]
        assert len(between) > 0
        assert num_tokens == max_tokens or a_end == b_start


def check_masks(instance, ids, words, options, vocabulary):
    """Sorted positions, whole words up to the budget, and no word left that would fit.

    Where most of the budget is left, a span of a longer word uses it up.
    """
    num_masked = int(instance["masked_lm_weights"].sum())
    positions = instance["masked_lm_positions"].tolist()
    assert instance["masked_lm_weights"].tolist() == [1.0] * num_masked + [0.0] * (
        options.max_predictions_per_seq - num_masked
    )
    assert positions[num_masked:] == [0] * (options.max_predictions_per_seq - num_masked)
    assert not instance["masked_lm_ids"][num_masked:].any()
    masked = positions[:num_masked]
    assert masked == sorted(set(masked))
    assert set(masked) <= {column for word in words for column in word}

    length = int(instance["input_mask"].sum())
    budget = min(options.max_predictions_per_seq, max(1, round(length * options.masked_lm_prob)))
    assert num_masked <= budget
    whole = [word for word in words if set(word) <= set(masked)]
    num_whole = sum(map(len, whole))
    longer = [word for word in words if word not in whole]
    assert all(num_whole + len(word) > budget for word in longer)
    spans = [span for word in longer if (span := sorted(set(word) & set(masked)))]
    if longer and 2 * num_whole < budget:
        (span,) = spans
        assert span == list(range(span[0], span[0] + budget - num_whole))
    else:
        assert not spans

    unmasked = np.delete(np.arange(len(ids)), masked)
    assert (instance["input_ids"][unmasked] == ids[unmasked]).all()
    if options.random_token == RandomToken.WORDS:
        mask_id = vocabulary.ids["[MASK]"]
        changed = [column for column in masked if instance["input_ids"][column] != ids[column]]
        assert set(instance["input_ids"][changed]) <= {*vocabulary.ordinary_ids, mask_id}
        if options.masked_word_action == MaskedWordAction.PER_WORD:
            is_mask = instance["input_ids"] == mask_id
            assert all(len(set(is_mask[word])) == 1 for word in (*whole, *spans))


@settings(max_examples=150, deadline=None)
@given(SHAPES, instance_options(), st.integers(0, 2**32))
def test_instances_of_any_documents_keep_the_rules(batch_of, vocabulary, documents, options, seed):
    batch = batch_of(documents, FIRST_ID, word_seed=seed)
    statistics = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.instances.INSTANCES_PER_BATCH", 3)
        batches = list(
            make_instances(batch, vocabulary, options, np.random.default_rng(seed), statistics)
        )
    assert all(len(batch["input_ids"]) == 3 for batch in batches[:-1])
    pairs = plan_segment_pairs(
        batch, options.max_seq_length, options.short_seq_prob, np.random.default_rng(seed)
    )
    assert statistics["instances"] == len(pairs)
    assert statistics["chunks_without_next"] == pairs.chunks_without_next
    if not batches:
        return
    instances = stack(batches)
    assert instances["next_sentence_labels"][:, 0].tolist() == pairs.labels.tolist()
    for row in range(len(pairs)):
        instance = {name: values[row] for name, values in instances.items()}
        ids, columns_of_a, columns_of_b = segments_of(instance, vocabulary)
        label = instance["next_sentence_labels"][0]
        check_segments(ids, columns_of_a, columns_of_b, label, batch, options.max_seq_length - 3)
        words = [
            word
            for columns in (columns_of_a, columns_of_b)
            for word in words_of(columns, ids, batch, options.do_whole_word_mask)
        ]
        check_masks(instance, ids, words, options, vocabulary)
    check_statistics(statistics, instances, vocabulary)


def check_statistics(statistics, instances, vocabulary):
    is_real = instances["masked_lm_weights"] > 0
    rows, _ = np.nonzero(is_real)
    new_ids = instances["input_ids"][rows, instances["masked_lm_positions"][is_real]]
    by_mask = (new_ids == vocabulary.ids["[MASK]"]).sum()
    kept = (new_ids == instances["masked_lm_ids"][is_real]).sum()
    assert statistics["tokens"] == instances["input_mask"].sum(dtype=np.int64)
    assert statistics["random_next"] == instances["next_sentence_labels"].sum()
    assert statistics["masked"] == is_real.sum()
    assert statistics["instances_without_mask"] == (~is_real.any(axis=1)).sum()
    # A random replacement may happen to be [MASK] or the token itself.
    assert 0 <= by_mask - statistics["masked_by_mask"] <= statistics["masked_by_random"]
    assert 0 <= kept - statistics["masked_kept"] <= statistics["masked_by_random"]
    assert statistics["masked"] == (
        statistics["masked_by_mask"] + statistics["masked_kept"] + statistics["masked_by_random"]
    )


def test_no_word_reaches_across_a_separator(batch_of, vocabulary):
    """B may begin with a `##` piece after a truncation; A's last word is not to take it along."""
    batch = batch_of([[30, 30]] * 9, FIRST_ID)
    batch.word_starts[:] = np.arange(len(batch.ids)) % 3 == 0
    options = InstanceOptions(max_seq_length=30, max_predictions_per_seq=30, masked_lm_prob=0.5)
    leading_pieces = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        instances = stack(list(make_instances(batch, vocabulary, options, rng, Counter())))
        for row in range(len(instances["input_ids"])):
            instance = {name: values[row] for name, values in instances.items()}
            ids, columns_of_a, columns_of_b = segments_of(instance, vocabulary)
            leading_pieces += not batch.word_starts[ids[columns_of_b[0]] - FIRST_ID]
            words = [
                word
                for columns in (columns_of_a, columns_of_b)
                for word in words_of(columns, ids, batch, do_whole_word_mask=True)
            ]
            check_masks(instance, ids, words, options, vocabulary)
    assert leading_pieces > 50


def test_pieces_are_masked_one_by_one_without_whole_word_masks(batch_of, vocabulary):
    batch = batch_of([[25, 25]] * 12, FIRST_ID)
    batch.word_starts[:] = False
    options = InstanceOptions(max_seq_length=43, do_whole_word_mask=False)
    rng = np.random.default_rng(1)
    instances = stack(list(make_instances(batch, vocabulary, options, rng, Counter())))
    lengths = instances["input_mask"].sum(axis=1, dtype=np.int64)
    assert instances["masked_lm_weights"].sum(axis=1).tolist() == [
        round(length * 0.15) for length in lengths.tolist()
    ]


@pytest.mark.parametrize(
    ("max_seq_length", "num_masked"), [(10, 2), (30, 4), (50, 8), (128, 19), (512, 77)]
)
def test_full_instances_mask_the_numbers_of_the_original(
    batch_of, vocabulary, max_seq_length, num_masked
):
    batch = batch_of([[max_seq_length // 3] * 3, [4]], FIRST_ID)
    options = InstanceOptions(
        max_seq_length=max_seq_length, max_predictions_per_seq=max_seq_length, short_seq_prob=0.0
    )
    found = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for instances in make_instances(batch, vocabulary, options, rng, Counter()):
            is_full = instances["input_mask"].all(axis=1)
            found |= set(instances["masked_lm_weights"].sum(axis=1)[is_full])
    assert found == {num_masked}


def test_predictions_are_capped(batch_of, vocabulary):
    batch = batch_of([[100] * 3, [100] * 2], FIRST_ID)
    options = InstanceOptions(max_seq_length=203, max_predictions_per_seq=20)
    rng = np.random.default_rng(1)
    instances = stack(list(make_instances(batch, vocabulary, options, rng, Counter())))
    assert instances["masked_lm_weights"].shape[1] == 20
    assert instances["masked_lm_weights"].all()


def test_a_single_document_has_no_random_next_and_drops_chunks_of_one_sentence(
    batch_of, vocabulary
):
    options = InstanceOptions(max_seq_length=16, max_predictions_per_seq=3, short_seq_prob=0.0)
    statistics = Counter()
    batch = batch_of([[13, 13, 2, 2, 13, 13, 1]], FIRST_ID)
    rng = np.random.default_rng(1)
    instances = stack(list(make_instances(batch, vocabulary, options, rng, statistics)))
    assert instances["next_sentence_labels"].tolist() == [[0]]
    assert statistics["chunks_without_next"] == 4


def test_nothing_comes_of_one_sentence_alone(batch_of, vocabulary):
    statistics = Counter()
    batch = batch_of([[13]], FIRST_ID)
    rng = np.random.default_rng(1)
    assert list(make_instances(batch, vocabulary, InstanceOptions(), rng, statistics)) == []
    assert statistics["chunks_without_next"] == 1


def test_padding_has_the_id_of_the_padding_token(batch_of, tmp_path):
    tokens = ["a", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", *(f"t{i}" for i in range(100))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    rng = np.random.default_rng(1)
    options = InstanceOptions(max_seq_length=32, max_predictions_per_seq=4, short_seq_prob=1)
    vocabulary, batch = Vocabulary(tmp_path / "vocab.txt"), batch_of([[5, 4], [7, 3]], 6)
    instances = stack(list(make_instances(batch, vocabulary, options, rng, Counter())))
    is_padding = instances["input_mask"] == 0
    assert is_padding.any()
    assert (instances["input_ids"][is_padding] == 5).all()
    assert (instances["input_ids"][~is_padding] != 5).all()


@pytest.fixture(scope="module")
def many_masks(batch_of, write_vocabulary):
    """Instances over a vocabulary that is mostly unused tokens, by `random_token`."""
    unused = (f"[unused{number}]" for number in range(90))
    vocabulary = Vocabulary(write_vocabulary(*unused, *(f"t{number}" for number in range(30))))
    batch = batch_of([[10] * 4] * 1600, 0)
    batch.ids[:] = 95 + np.random.default_rng(1).integers(0, 30, len(batch.ids))

    def generate(random_token):
        statistics = Counter()
        options = InstanceOptions(max_seq_length=64, random_token=random_token)
        rng = np.random.default_rng(2)
        instances = stack(list(make_instances(batch, vocabulary, options, rng, statistics)))
        is_real = instances["masked_lm_weights"] > 0
        rows, _ = np.nonzero(is_real)
        new_ids = instances["input_ids"][rows, instances["masked_lm_positions"][is_real]]
        labels = instances["masked_lm_ids"][is_real]
        is_random = (new_ids != labels) & (new_ids != vocabulary.ids["[MASK]"])
        return statistics, np.bincount(new_ids[is_random], minlength=len(vocabulary))

    return generate


def test_masked_kept_and_random_have_their_shares(many_masks):
    statistics, _ = many_masks(RandomToken.WORDS)
    assert statistics["masked"] > 10_000
    for name, share in (("by_mask", 0.8), ("kept", 0.1), ("by_random", 0.1)):
        counted = statistics[f"masked_{name}"] / statistics["masked"]
        assert counted == pytest.approx(share, abs=0.015)
    assert statistics["masked"] / statistics["tokens"] == pytest.approx(0.15, abs=0.01)
    assert 0.45 < statistics["random_next"] / statistics["instances"] < 0.62


def test_random_words_are_never_special_or_unused(many_masks):
    _, counts = many_masks(RandomToken.WORDS)
    assert not counts[:95].any()
    assert (counts[95:] > 0).all()


def test_random_tokens_of_the_original_are_any_token(many_masks):
    _, counts = many_masks(RandomToken.ANY)
    others = np.delete(counts, 4)
    assert (others > 0).all()
    assert counts[:95].sum() / counts.sum() == pytest.approx(95 / 125, abs=0.05)


@pytest.mark.parametrize(
    ("action", "share_of_words_with_both"),
    [(MaskedWordAction.PER_PIECE, 0.32), (MaskedWordAction.PER_WORD, 0.0)],
)
def test_a_masked_word_acts_piece_by_piece_or_as_a_whole(
    batch_of, vocabulary, action, share_of_words_with_both
):
    batch = batch_of([[10, 10]] * 28, FIRST_ID)
    batch.word_starts[:] = np.arange(len(batch.ids)) % 2 == 0
    options = InstanceOptions(
        max_seq_length=64, masked_lm_prob=0.5, short_seq_prob=0.0, masked_word_action=action
    )
    is_mask = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        for instances in make_instances(batch, vocabulary, options, rng, Counter()):
            rows, _ = np.nonzero(instances["masked_lm_weights"])
            positions = instances["masked_lm_positions"][instances["masked_lm_weights"] > 0]
            new_ids = instances["input_ids"][rows, positions]
            is_mask.append((new_ids == vocabulary.ids["[MASK]"]).reshape(-1, 2))
    first, second = np.concatenate(is_mask).T
    assert (first != second).mean() == pytest.approx(share_of_words_with_both, abs=0.03)
    assert first.mean() == pytest.approx(0.8, abs=0.03)


def test_the_words_of_an_ngram_act_as_a_whole(batch_of, vocabulary):
    batch = batch_of([[20, 20]] * 60, FIRST_ID)

    def share_that_act_differently(**options):
        """Of masked pieces that follow a masked piece; each piece is a word."""
        options = InstanceOptions(max_seq_length=64, masked_lm_prob=0.1, **options)
        differ = []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            for instances in make_instances(batch, vocabulary, options, rng, Counter()):
                rows, slots = np.nonzero(instances["masked_lm_weights"])
                columns = instances["masked_lm_positions"][rows, slots]
                is_mask = instances["input_ids"][rows, columns] == vocabulary.ids["[MASK]"]
                follows = (np.diff(columns) == 1) & (np.diff(rows) == 0)
                differ.append(np.diff(is_mask)[follows])
        return np.concatenate(differ).mean()

    per_word = {"masked_word_action": MaskedWordAction.PER_WORD}
    assert share_that_act_differently(**per_word) == pytest.approx(0.32, abs=0.04)
    assert share_that_act_differently(max_ngram_size=3) == pytest.approx(0.32, abs=0.04)
    # The rest are n-grams that touch.
    assert share_that_act_differently(max_ngram_size=3, **per_word) < 0.08


def test_draws_come_from_the_generator_alone(batch_of, vocabulary):
    batch = batch_of([[9, 9, 9]] * 6, FIRST_ID)

    def instances_of(seed):
        rng = np.random.default_rng(seed)
        return stack(list(make_instances(batch, vocabulary, InstanceOptions(), rng, Counter())))

    first, again, other = instances_of(1), instances_of(1), instances_of(2)
    assert all((first[name] == again[name]).all() for name in first)
    assert first["input_ids"].tolist() != other["input_ids"].tolist()


# From arbitrary text to instances.

TRICKY_CHARACTERS = (
    "\0\t\v\x1c\x85\xa0\xad\u200b\u2028\u3000\ufeff\ufffd\ud800"
    "aAéİßǅ한が一漢字\U00020000\u0301[]#_'。.·€ "
)
SENTENCES = st.text(
    st.sampled_from("abcdefgh   ,漢字") | st.sampled_from(TRICKY_CHARACTERS) | st.characters(),
    max_size=30,
) | st.sampled_from(["", "[CLS] [SEP] [MASK] [PAD]", "##a ##b", "a" * 250, "漢字" * 20])
TEXTS = st.lists(st.lists(SENTENCES, max_size=7), max_size=6)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def tokenizer(request, write_vocabulary):
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, "ab", "abc", *(f"##{letter}" for letter in letters), "##cd"]
    vocab_file = write_vocabulary("[unused0]", *pieces, *"[]#.,漢字。", "é", "##é")
    return FullTokenizer(vocab_file, do_lower_case=request.param)


@pytest.fixture(scope="module")
def split_file(tmp_path_factory):
    return tmp_path_factory.mktemp("split") / "split.parquet"


def in_pairs(text):
    """A segmenter that knows no words: it takes two characters at a time."""
    return [text[start : start + 2] for start in range(0, len(text), 2)]


def batch_of_texts(texts, tokenizer, split_file, segment=None):
    """The documents, each a list of sentences, as they come out of the tokenized corpus."""
    documents = tokenize_documents(
        [Document("a", number, 0, sentences) for number, sentences in enumerate(texts)],
        tokenizer,
        Counter(),
        segment and WordFinder(tokenizer, segment),
    )
    members = [document for document in documents if document]
    buckets = write_documents(split_file, [{Bucket("train", 0): members}] if members else [])
    row_groups = [RowGroup(split_file, number) for number in range(len(buckets))]
    return read_documents_of_bucket(row_groups, tokenizer.vocabulary.id_dtype)


def tokens_of(texts, tokenizer):
    """The tokens of each document that has any, the plain way."""
    documents = [
        [token for sentence in sentences for token in tokenizer.tokenize(sentence)]
        for sentences in texts
    ]
    return [tokens for tokens in documents if tokens]


@settings(max_examples=200, deadline=None)
@given(TEXTS, instance_options(), st.integers(0, 2**32), st.booleans())
def test_instances_of_any_text_keep_the_rules(
    tokenizer, split_file, texts, options, seed, has_segmenter
):
    batch = batch_of_texts(texts, tokenizer, split_file, in_pairs if has_segmenter else None)
    vocabulary = tokenizer.vocabulary
    expected = tokens_of(texts, tokenizer)
    assert [vocabulary.tokens[number] for number in batch.ids] == list(chain(*expected))
    token_ends = batch.sentence_ends[batch.document_ends - 1]
    assert np.diff(token_ends, prepend=0).tolist() == [len(tokens) for tokens in expected]

    statistics = Counter()
    batches = list(
        make_instances(batch, vocabulary, options, np.random.default_rng(seed), statistics)
    )
    # The plan says where in the text A and B are; it is tested apart.
    pairs = plan_segment_pairs(
        batch, options.max_seq_length, options.short_seq_prob, np.random.default_rng(seed)
    )
    assert statistics["instances"] == len(pairs)
    if not batches:
        return
    instances = stack(batches)
    check_statistics(statistics, instances, vocabulary)
    records = encode_examples(instances)
    for row, record in enumerate(records):
        instance = decode_example(record)
        assert all(
            instance[name].tolist() == values[row].tolist() for name, values in instances.items()
        )
        ids, columns_of_a, columns_of_b = segments_of(instance, vocabulary)
        words, documents_of_pair = [], []
        for columns, start, length in (
            (columns_of_a, pairs.a_start[row], pairs.a_length[row]),
            (columns_of_b, pairs.b_start[row], pairs.b_length[row]),
        ):
            assert ids[columns].tolist() == batch.ids[start : start + length].tolist()
            begins = batch.word_starts[start : start + length] | (not options.do_whole_word_mask)
            for column, begins_word in zip(columns, begins, strict=True):
                if begins_word or column == columns[0]:
                    words.append([])
                words[-1].append(column)
            first, last = np.searchsorted(token_ends, [start, start + length - 1], side="right")
            assert first == last
            documents_of_pair.append(first)
        assert instance["next_sentence_labels"][0] == (documents_of_pair[0] != documents_of_pair[1])
        special = [vocabulary.ids[token] for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")]
        assert not set(ids[columns_of_a + columns_of_b].tolist()) & set(special)
        check_masks(instance, ids, words, options, vocabulary)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_words_of_any_text_are_those_that_the_pieces_show(tokenizer, split_file, texts):
    batch = batch_of_texts(texts, tokenizer, split_file)
    assert batch.word_starts.tolist() == [
        not token.startswith("##") for token in chain(*tokens_of(texts, tokenizer))
    ]
