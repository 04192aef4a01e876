"""The trainer's masks: the rules of stored ones, and draws that depend on the instance alone."""

import dataclasses
import itertools
import threading
from collections import Counter
from functools import partial
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling import batches
from modeling.batches import readable, training_batches
from modeling.training_masks import (
    TrainingMasks,
    _within_rows,
    check_masking,
    epochs_of,
    in_background,
    masked_batches,
    shards_of_epoch,
    training_limits,
)
from modeling.training_options import TrainingOptions
from pipeline.corpus import DocumentBatch
from pipeline.errors import UserError
from pipeline.inspection import read_sequences
from pipeline.options import InstanceOptions, Masking
from pipeline.records import (
    check_values,
    decode_instances,
    encode_examples,
    frame_record,
    instance_features,
    open_records,
    read_frames,
    record_of,
    unpack_word_starts,
)
from pipeline.rows import unpack
from pipeline.shards import make_instances
from pipeline.vocabulary import Vocabulary

pytestmark = pytest.mark.no_backend

SEED, RATE = 1, 0.3
CLS, SEP, MASK, FIRST_ORDINARY_ID, VOCAB_SIZE = 2, 3, 4, 5, 50
TRAIN = [("train", pass_index, 30) for pass_index in (0, 1) for _ in range(4)]
LAYOUTS = {
    "padded": {},
    "packed": {"packed_row_length": 48},
    "pieces": {"do_whole_word_mask": False, "random_token": "any"},
    "words": {"packed_row_length": 32, "masked_word_action": "per_word"},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def data_set(request, tmp_path_factory, write_unmasked):
    directory = tmp_path_factory.mktemp(request.param)
    return write_unmasked(directory, [*TRAIN, ("eval", 0, 5)], **LAYOUTS[request.param])


@pytest.fixture(scope="module")
def padded(tmp_path_factory, write_unmasked):
    return write_unmasked(tmp_path_factory.mktemp("padded"), [*TRAIN, ("eval", 0, 5)])


def records_of(data_set, pass_index=0):
    """All train records of a pass, as a batch."""
    records = []
    for shard in data_set.manifest.shards_of("train"):
        if shard.pass_index == pass_index:
            with open_records(data_set.path_of(shard)) as file:
                records += map(record_of, read_frames(file))
    return decode_instances(records, data_set.manifest.features_of("train"))


def draw(data_set, records, epoch=0, rate=RATE, seed=SEED):
    epochs = np.full(len(records["input_ids"]), epoch)
    return TrainingMasks(data_set, seed, RATE).draw(dict(records), epochs, rate)


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name, values in batch.items():
        assert values.dtype == other[name].dtype
        np.testing.assert_array_equal(values, other[name], name)


def words_of(word_starts, is_piece):
    """The words of a sequence, as lists of columns."""
    words = []
    for column in np.flatnonzero(is_piece):
        if word_starts[column] or not words or words[-1][-1] != column - 1:
            words.append([])
        words[-1].append(int(column))
    return words


@pytest.mark.parametrize("rate", [0.05, 0.15, RATE])
def test_whole_words_are_masked_within_the_budget_and_nothing_else_changes(data_set, rate):
    options, records = data_set.manifest.options, records_of(data_set)
    masked = draw(data_set, records, rate=rate)
    limits = training_limits(data_set.manifest, TrainingOptions(masked_lm_prob=RATE))
    features = instance_features(limits, VOCAB_SIZE)
    assert {name: each.shape[1] for name, each in masked.items()} == {
        name: feature.length for name, feature in features.items()
    }
    check_values(masked, features)
    for name in ("input_mask", "segment_ids", "next_sentence_labels"):
        assert (masked[name] == records[name]).all()
    length = data_set.manifest.max_seq_length
    before, after = unpack(unpack_word_starts(records), length), unpack(masked, length)
    partial = unused = 0
    for number, ids in enumerate(before["input_ids"]):
        is_real = after["masked_lm_weights"][number] > 0
        columns = after["masked_lm_positions"][number][is_real]
        assert (np.diff(columns) > 0).all()
        assert (after["masked_lm_ids"][number][is_real] == ids[columns]).all()
        others = np.setdiff1d(np.arange(length), columns)
        assert (after["input_ids"][number][others] == ids[others]).all()
        is_piece = (before["input_mask"][number] > 0) & ~np.isin(ids, [CLS, SEP])
        assert is_piece[columns].all()
        wanted = max(1, np.rint(before["input_mask"][number].sum() * rate))
        assert 1 <= len(columns) <= wanted
        unused += wanted - len(columns)
        if options["do_whole_word_mask"]:
            words = words_of(before["word_starts"][number], is_piece)
            cut = [word for word in words if 0 < len(set(word) & set(columns)) < len(word)]
            assert len(cut) <= 1  # a span of a word, where no other one fits
            partial += len(cut)
    assert partial < 0.1 * len(before["input_ids"])
    assert unused < 0.2 * masked["masked_lm_weights"].sum()


def test_draws_depend_on_seed_epoch_and_instance(data_set):
    records = records_of(data_set)
    first = draw(data_set, records)
    assert_equal(draw(data_set, records), first)
    for other in (draw(data_set, records, epoch=1), draw(data_set, records, seed=2)):
        same = (other["masked_lm_positions"] == first["masked_lm_positions"]).all(axis=1)
        assert same.mean() < 0.1
    # Of the same text under two numbers.
    repeated = {name: np.repeat(values[:1], 50, axis=0) for name, values in records.items()}
    repeated["instance_number"] = records["instance_number"][:50]
    masked = draw(data_set, repeated)
    assert len(np.unique(masked["masked_lm_positions"], axis=0)) > 10


def test_masks_do_not_depend_on_what_else_is_in_the_batch(data_set):
    records = records_of(data_set)
    order = np.random.default_rng(1).permutation(len(records["input_ids"]))
    masked = draw(data_set, records)
    assert_equal(
        draw(data_set, {name: values[order] for name, values in records.items()}),
        {name: values[order] for name, values in masked.items()},
    )
    for number in order[:20]:
        alone = draw(data_set, {name: values[[number]] for name, values in records.items()})
        assert_equal(alone, {name: values[[number]] for name, values in masked.items()})


def test_masks_do_not_depend_on_the_other_sequences_of_a_row(tmp_path, write_unmasked):
    data_set = write_unmasked(tmp_path, [("train", 0, 30)], packed_row_length=64)
    records = records_of(data_set)
    changed = {name: values.copy() for name, values in records.items()}
    is_changed = changed["input_mask"] == 2
    is_changed &= changed["input_ids"] >= FIRST_ORDINARY_ID
    changed["input_ids"][is_changed] = FIRST_ORDINARY_ID
    for epoch in range(5):
        one, other = (draw(data_set, each, epoch) for each in (records, changed))
        for name in ("masked_lm_positions", "masked_lm_weights"):
            assert (one[name] == other[name]).all()
        is_same = records["input_mask"] != 2
        assert (one["input_ids"][is_same] == other["input_ids"][is_same]).all()


def test_a_share_below_the_largest_masks_as_if_it_were_the_only_one(data_set):
    records = records_of(data_set)
    epochs = np.zeros(len(records["input_ids"]), int)
    few, many = (
        TrainingMasks(data_set, SEED, largest).draw(dict(records), epochs, 0.15)
        for largest in (0.15, 0.6)
    )
    assert few["masked_lm_ids"].shape[1] < many["masked_lm_ids"].shape[1]
    assert (few["input_ids"] == many["input_ids"]).all()
    assert few["masked_lm_weights"].sum() == many["masked_lm_weights"].sum()


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.26, RATE])
def test_rows_of_short_sequences_keep_their_limits(rate, tmp_path, write_unmasked):
    data_set = write_unmasked(
        tmp_path, [("train", 0, 60)], packed_row_length=160, short_seq_prob=1.0
    )
    records = records_of(data_set)
    masked = draw(data_set, records, rate=rate)
    of_rate = training_limits(data_set.manifest, TrainingOptions(masked_lm_prob=rate))
    of_rows = masked["masked_lm_weights"].sum(axis=1)
    assert (of_rows <= of_rate.predictions).all()
    assert (of_rows >= records["input_mask"].max(axis=1)).all()


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(6, 40),
)
def test_budgets_are_cut_evenly_where_a_row_would_exceed_its_limit(rows, most):
    budget = np.array(list(itertools.chain(*rows)))
    sizes = np.array([len(row) for row in rows])
    cut = np.split(_within_rows(budget, sizes, most), np.cumsum(sizes)[:-1])
    for row, found in zip(rows, cut, strict=True):
        assert found.sum() == min(sum(row), most)
        assert (found >= 1).all()
        share = (most - len(row)) / max(sum(row) - len(row), 1)
        wanted = 1 + (np.array(row) - 1) * min(share, 1)
        assert (abs(found - wanted) < 1).all()


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    monkeypatch.setattr(batches, "_SHUFFLE_BUFFER_RECORDS", 4)


def read(data_set, count, step=0, process_id=0, num_processes=1, **options):
    options = TrainingOptions(train_batch_size=8, random_seed=SEED, num_train_steps=60, **options)
    place = (8 * step, process_id, num_processes)
    found = training_batches(data_set, 8, SEED, *place)
    masked = masked_batches(readable(found, data_set), data_set, options, step, *place)
    return list(itertools.islice(masked, count))


@pytest.mark.parametrize("data_set", ["padded", "words"], indirect=True)
@pytest.mark.usefixtures("small_groups")
def test_batches_of_processes_and_of_a_resumed_run_are_parts_of_the_same(data_set):
    schedule = {"masked_lm_prob": "0.3:0.1"}
    whole = read(data_set, 30, **schedule)
    assert len(np.unique([batch["masked_lm_weights"].sum() for batch in whole])) > 5
    for step in (1, 17):
        for ours, theirs in zip(
            read(data_set, 30 - step, step, **schedule), whole[step:], strict=True
        ):
            assert_equal(ours, theirs)
    for count in (2, 4):
        parts = [read(data_set, 30, 0, process, count, **schedule) for process in range(count)]
        for batch, *of_processes in zip(whole, *parts, strict=True):
            for process, part in enumerate(of_processes):
                assert_equal(part, {name: each[process::count] for name, each in batch.items()})
    (resumed,) = read(data_set, 1, 20, 1, 2, **schedule)
    assert_equal(resumed, {name: each[1::2] for name, each in whole[20].items()})


@pytest.mark.usefixtures("small_groups")
def test_no_epoch_repeats_a_mask_and_each_instance_has_its_own(padded):
    manifest = padded.manifest
    found = training_batches(padded, 1, SEED)
    sizes = Counter()
    for shard in manifest.shards_of("train"):
        sizes[shard.pass_index] += shard.instances
    total = sum(sizes.values())
    epochs = epochs_of(manifest, np.arange(2 * total + 5))
    assert np.bincount(epochs).tolist() == [sizes[0], sizes[1], sizes[0], sizes[1], 5]
    read = itertools.islice(readable(found, padded), 2 * total)
    seen = [
        (int(epoch), *batch["instance_number"][0].tolist())
        for epoch, batch in zip(epochs, read, strict=False)
    ]
    assert len(set(seen)) == len(seen) == 2 * total
    assert {each[1:] for each in seen if each[0] == 0} == {
        each[1:] for each in seen if each[0] == 2
    }
    assert epochs_of(manifest, np.array([10**12])) == 10**12 // total * 2 + int(
        10**12 % total >= sizes[0]
    )


@pytest.mark.parametrize("data_set", ["padded", "words"], indirect=True)
@pytest.mark.usefixtures("small_groups")
def test_inspection_shows_what_the_trainer_draws(data_set):
    """Of each of five epochs, which are three readings of the data; in another order."""
    manifest = data_set.manifest
    shards = [shards_of_epoch(manifest, epoch) for epoch in range(5)]
    sizes = [sum(shard.instances for shard in each) for each in shards]
    batches = read(data_set, sum(sizes) // 8, masked_lm_prob=RATE)
    drawn = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
    masks, first = TrainingMasks(data_set, SEED, RATE), 0
    for epoch, size in enumerate(sizes):
        rows = {name: values[first : first + size] for name, values in drawn.items()}
        first += size
        trained = Counter(map(text_of, each_of(unpack(rows, manifest.max_seq_length))))
        mask = partial(masks.draw, epochs=np.array([epoch]), rate=RATE)
        records = [read_sequences(data_set, shard, mask) for shard in shards[epoch]]
        shown = Counter(map(text_of, chain.from_iterable(chain.from_iterable(records))))
        # The last rows of the last epoch are in no whole batch.
        assert trained == shown if epoch < 4 else trained <= shown


def each_of(instances):
    return [
        {name: values[number] for name, values in instances.items()}
        for number in range(len(instances["input_ids"]))
    ]


def text_of(instance):
    """What an instance holds, without padding."""
    length, is_real = instance["input_mask"].sum(), instance["masked_lm_weights"] > 0
    of_masks = [
        instance[name][is_real].tolist() for name in ("masked_lm_positions", "masked_lm_ids")
    ]
    return str([instance["input_ids"][:length].tolist(), *of_masks])


def test_the_default_share_is_that_of_the_data(padded):
    (batch,) = read(padded, 1)
    (same,) = read(padded, 1, masked_lm_prob="0.15")
    assert_equal(batch, same)
    assert batch["masked_lm_ids"].shape[1] == 3
    (more,) = read(padded, 1, masked_lm_prob="0.2,0.9@5")
    assert more["masked_lm_ids"].shape[1] == 15


def test_stored_masks_have_no_schedule(tmp_path, write_data_set, padded):
    stored = write_data_set(tmp_path, [("train", 0, 5)])
    options = TrainingOptions(masked_lm_prob=0.3)
    with pytest.raises(UserError, match=rf"masks of {tmp_path} are stored: generate it with --mas"):
        check_masking(stored, options)
    check_masking(stored, TrainingOptions())
    check_masking(padded, options)
    assert training_limits(stored.manifest, TrainingOptions()) == stored.manifest.row_limits


def test_an_option_of_the_data_that_is_out_of_range_is_named(padded):
    options = {**padded.manifest.options, "max_ngram_size": -3}
    manifest = dataclasses.replace(padded.manifest, options=options)
    with pytest.raises(UserError, match="manifest has an unusable option: --max_ngram_size=-3"):
        training_limits(manifest, TrainingOptions())


@pytest.mark.parametrize(
    ("name", "value"),
    [("masked_word_action", "per_letter"), ("do_whole_word_mask", []), ("random_token", None)],
)
def test_an_unusable_option_of_the_data_is_named(padded, name, value):
    options = {**padded.manifest.options, name: value}
    manifest = dataclasses.replace(padded.manifest, options=options)
    with pytest.raises(UserError, match=f"manifest has an unusable option {name}: generate"):
        TrainingMasks(dataclasses.replace(padded, manifest=manifest), SEED, RATE)


def test_a_row_that_is_none_is_reported(tmp_path, write_unmasked):
    data_set = write_unmasked(tmp_path, [("train", 0, 30)], packed_row_length=48)
    records = records_of(data_set)
    records["input_mask"][0, :9] = 0
    options = TrainingOptions(masked_lm_prob=RATE)
    with pytest.raises(UserError, match=rf"cannot read the data set {tmp_path}: a record is dama"):
        next(masked_batches(iter([records]), data_set, options))


@pytest.mark.parametrize("name", ["word_starts", "input_ids"])
def test_a_value_out_of_its_range_is_reported_with_its_record(name, tmp_path, write_unmasked):
    data_set = write_unmasked(tmp_path, [("train", 0, 30)])
    records = records_of(data_set)
    records[name][3, 0] = data_set.manifest.features_of("train")[name].limit
    (shard,) = data_set.manifest.shards
    path = data_set.path_of(shard)
    path.write_bytes(b"".join(map(frame_record, encode_examples(records))))
    shard = dataclasses.replace(shard, bytes=path.stat().st_size)
    manifest = dataclasses.replace(data_set.manifest, shards=[shard])
    with pytest.raises(UserError, match=rf"record 4 of {path} is damaged \(its {name} are from"):
        read(dataclasses.replace(data_set, manifest=manifest), 40)


def test_batches_are_made_in_the_background_in_order():
    asked = []

    def make():
        for number in itertools.count():
            asked.append(threading.current_thread().name)
            yield number

    batches = in_background(make())
    assert list(itertools.islice(batches, 100)) == list(range(100))
    batches.close()
    assert set(asked) == {"masks"}
    assert len(asked) < 110
    assert not [thread for thread in threading.enumerate() if thread.name == "masks"]
    assert list(in_background(iter(range(5)))) == list(range(5))


def test_an_error_in_the_background_is_raised_where_the_batch_is_used():
    def make():
        yield 1
        raise UserError("damaged")

    batches = in_background(make())
    assert next(batches) == 1
    with pytest.raises(UserError, match="damaged"):
        next(batches)


# The statistics of both ways to mask the same instances.


def statistics_of(instances, word_starts):
    """Shares of masked tokens, of what became of them, and of masked words by length."""
    row, slot = np.nonzero(instances["masked_lm_weights"])
    position = instances["masked_lm_positions"][row, slot]
    labels, read = instances["masked_lm_ids"][row, slot], instances["input_ids"][row, position]
    is_mask, is_kept = read == MASK, read == labels
    begins = word_starts[row, position]
    lengths = np.diff(np.flatnonzero(begins), append=len(begins))
    return {
        "masked": len(row) / instances["input_mask"].sum(),
        "[MASK]": is_mask.mean(),
        "kept": is_kept.mean(),
        "random": 1 - is_mask.mean() - is_kept.mean(),
        **{f"length {n}": (lengths == n).mean() for n in range(1, 6)},
        "row without mask": 1 - len(np.unique(row)) / len(instances["input_ids"]),
        **{f"column {n}": (position == n).mean() for n in (1, 10, 30)},
    }


def compare(tmp_path, write_unmasked, num_instances, bound):
    """Masks the same instances in both ways, in parts of so many sentences as needed."""
    data_set = write_unmasked(tmp_path, [("train", 0, 3)], max_seq_length=32)
    vocabulary = Vocabulary(data_set.vocabulary)
    masks = TrainingMasks(data_set, SEED, 0.15)
    totals, count = {Masking.STORED: Counter(), Masking.TRAINING: Counter()}, 0
    for seed in itertools.count():
        rng = np.random.default_rng(seed)
        sentences = rng.integers(3, 14, 50_000)
        tokens = int(sentences.sum())
        documents = DocumentBatch(
            ids=rng.integers(FIRST_ORDINARY_ID, VOCAB_SIZE, tokens).astype(np.uint16),
            word_starts=rng.random(tokens) < 0.6,
            sentence_ends=np.cumsum(sentences),
            document_ends=np.arange(10, 50_001, 10),
        )
        stored, unmasked = (
            make_instances(
                documents,
                vocabulary,
                InstanceOptions(max_seq_length=32, masking=masking),
                np.random.default_rng(seed),
                Counter(),
                seed,
            )
            for masking in (Masking.STORED, Masking.TRAINING)
        )
        # The pairs are the same, because all of them are drawn before any mask.
        for ours, theirs in zip(unmasked, stored, strict=True):
            word_starts = unpack_word_starts(ours)["word_starts"]
            size = len(word_starts)
            drawn = masks.draw(ours, np.zeros(size, int), 0.15)
            for masking, instances in ((Masking.STORED, theirs), (Masking.TRAINING, drawn)):
                for name, share in statistics_of(instances, word_starts).items():
                    totals[masking][name] += size * share
            count += size
            if count >= num_instances:
                means = [
                    {name: value / count for name, value in totals[masking].items()}
                    for masking in Masking
                ]
                assert means[0] == pytest.approx(means[1], abs=bound)
                return


def test_statistics_are_those_of_stored_masks(tmp_path, write_unmasked):
    compare(tmp_path, write_unmasked, 30_000, bound=0.01)


@pytest.mark.slow
def test_statistics_of_a_million_instances_are_those_of_stored_masks(tmp_path, write_unmasked):
    compare(tmp_path, write_unmasked, 1_000_000, bound=0.002)
