"""Instances that other programs wrote: every record is checked and counted.

The original's `create_pretraining_data.py` and the Model Garden's write records with the features
of `pipeline.records`; the second version of the Model Garden's has other names for two of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from absl import logging

from pipeline.errors import UserError, in_one_line, listed
from pipeline.files import sha256_of
from pipeline.manifest import Shard
from pipeline.records import (
    ALIASES,
    Instances,
    RowLimits,
    decode_example,
    decode_instances,
    instance_features,
    open_records,
    read_frames,
    record_of,
)
from pipeline.rows import count_rows, unpack
from pipeline.statistics import InstanceHistograms, ShardResults
from pipeline.storage import Location, size_of
from pipeline.tokenization import BasicTokenizer, without_accents
from pipeline.vocabulary import Vocabulary

_RECORDS_PER_BATCH = 1024
_OTHER_VOCABULARY = "the records were probably made with another vocabulary than --vocab_file"
# Of so many masked pieces, some are [MASK] if the vocabulary is that of the records.
_ENOUGH_MASKED = 30
# A punctuation mark is a word of its own: if ## pieces follow more of them, that is not their text.
_SHARE_AFTER_WHOLE_WORDS = 0.005
# A smaller share of tokens in another case may come from another version of Unicode.
_SHARE_IN_OTHER_CASE = 0.001


class RecordReader:
    """Reads files of records, all of which are of the first record's kind.

    Args:
      paths: the files.
      vocabulary: the vocabulary that the records were made with.

    Attributes:
      feature_names: which names their features have, one of `records.ALIASES`.
      row_limits: the most that a record holds.
      max_seq_length, max_predictions_per_seq: S and P; of packed rows, the most that a sequence has
        of those that were read so far.

    Raises:
      UserError: there is no record, or the first one is no instance.
    """

    def __init__(self, paths: list[Location], vocabulary: Vocabulary):
        first = next(((path, batch[0]) for path in paths for batch, _ in _batches(path)), None)
        if first is None:
            raise UserError(f"there is no record in {listed([str(path) for path in paths])}")
        names, limits = _kind_of(*first)
        features = instance_features(limits, len(vocabulary), names)
        self.feature_names, self.row_limits = names, limits
        self._are_packed = limits.sequences > 1
        self.max_seq_length, self.max_predictions_per_seq = (
            (0, 0) if self._are_packed else (limits.tokens, limits.predictions)
        )
        self._vocabulary = vocabulary
        # An id that is too large tells of another vocabulary, so it gets a message of its own.
        unlimited = {
            name: replace(features[name], limit=np.iinfo(np.int64).max)
            for name in ("input_ids", "masked_lm_ids")
        }
        self._features = features | unlimited
        self._bytes_read = 0
        # How often each token stands in the text of the instances, before it is masked.
        self._tokens = np.zeros(len(vocabulary), np.int64)
        self._masked, self._masked_by_mask = 0, 0
        self._is_whole_word = _whole_words(vocabulary)
        self._whole_words, self._continued = 0, 0

    def read(
        self, path: Location, name: str, split: str, report: Callable[[int], None]
    ) -> ShardResults:
        """Reads, checks and counts the records of a file.

        Args:
          path: the file.
          name: its name in the manifest.
          split: "train" or "eval".
          report: is called with the number of bytes read so far, of all files.

        Raises:
          UserError: the file cannot be read, or a record is no instance; the message names file,
            record and feature.
        """
        counts: Counter[str] = Counter(instances=0)
        histograms = InstanceHistograms(self.row_limits.tokens, self._vocabulary)
        for records, bytes_read in _batches(path):
            instances = self._decode(records, path, counts["instances"])
            self._count(instances, counts)
            if self._are_packed:
                count_rows(len(records), instances, counts)
            histograms.add(instances)
            report(self._bytes_read + bytes_read)
        shard = Shard(
            name=name,
            split=split,
            pass_index=0,
            documents=0,
            instances=counts["instances"],
            tokens=counts["tokens"],
            bytes=size_of(path),
            sha256=sha256_of(path),
        )
        self._bytes_read += shard.bytes
        return ShardResults(shard, counts, histograms.lengths(), histograms.masked_tokens())

    def corpus(self) -> Counter[str]:
        """Counts of the text: its tokens, and those of them that are `[UNK]`."""
        ids = self._vocabulary.ids
        return Counter(
            tokens=int(self._tokens.sum() - self._tokens[[ids["[CLS]"], ids["[SEP]"]]].sum()),
            unknown_tokens=int(self._tokens[ids["[UNK]"]]),
        )

    def check_vocabulary(self, do_lower_case: bool, strip_accents: bool | None) -> None:
        """Checks that what was read agrees with the vocabulary, and with how it was tokenized.

        Args:
          do_lower_case: whether the text is said to be lower-cased.
          strip_accents: whether accents are said to be stripped; None: only when lower-casing.

        Raises:
          UserError: it does not.
        """
        if self._masked >= _ENOUGH_MASKED and not self._masked_by_mask:
            raise UserError(
                f"none of the {self._masked:,} masked pieces is [MASK], which is the id "
                f"{self._vocabulary.ids['[MASK]']}: {_OTHER_VOCABULARY}"
            )
        if self._continued > _SHARE_AFTER_WHOLE_WORDS * self._whole_words:
            raise UserError(
                f"a ## piece follows {self._continued:,} of the {self._whole_words:,} punctuation "
                f"marks and ideographs: {_OTHER_VOCABULARY}"
            )
        strips = do_lower_case if strip_accents is None else strip_accents
        if do_lower_case:
            self._check_absent(str.lower, "were not lower-cased: give --nodo_lower_case")
        if strips:
            self._check_absent(without_accents, "kept their accents: give --nostrip_accents")
        if not do_lower_case and self._changed_by(str.upper) and not self._changed_by(str.lower):
            logging.warning(
                "no token of the records has a capital letter: if their text was lower-cased, "
                "leave out --nodo_lower_case"
            )

    def _check_absent(self, normalize: Callable[[str], str], what: str) -> None:
        """Checks that tokens which normalizing would have changed are next to absent."""
        changed = self._changed_by(normalize)
        if self._tokens[changed].sum() > _SHARE_IN_OTHER_CASE * self._tokens.sum():
            most = max(changed, key=lambda number: self._tokens[number])
            raise UserError(
                f"the records hold {self._vocabulary.tokens[most]!r} {self._tokens[most]:,} times, "
                f"so their texts {what}"
            )

    def _changed_by(self, normalize: Callable[[str], str]) -> list[int]:
        """The ids of the tokens of the text that a function changes, without special ones."""
        tokens = self._vocabulary.tokens
        used = np.intersect1d(np.flatnonzero(self._tokens), self._vocabulary.ordinary_ids)
        return [number for number in used.tolist() if normalize(tokens[number]) != tokens[number]]

    def _decode(self, records: list[bytes], path: Location, num_before: int) -> Instances:
        try:
            instances = decode_instances(records, self._features)
            if self._are_packed:
                self._check_padding(instances)
                instances = unpack(instances)
            self._check(instances)
        except ValueError as error:
            if len(records) == 1:
                where = f"record {num_before + 1} of {path}"
                raise UserError(f"{where} cannot be adopted: {in_one_line(str(error))}") from error
            for number, record in enumerate(records, num_before):
                self._decode([record], path, number)
            raise
        return instances

    def _check(self, instances: Instances) -> None:
        """Checks that instances are `[CLS] A [SEP] B [SEP]` and padding, in this vocabulary.

        Raises:
          ValueError: one is not.
        """
        vocabulary = self._vocabulary
        ids, mask, segments = (
            instances[name] for name in ("input_ids", "input_mask", "segment_ids")
        )
        for name in ("input_ids", "masked_lm_ids"):
            if (largest := instances[name].max()) >= len(vocabulary):
                raise ValueError(
                    f"{self._its(name)} hold {largest}, but the vocabulary has {len(vocabulary)} "
                    f"tokens: {_OTHER_VOCABULARY}"
                )
        lengths = mask.sum(axis=1)
        is_token = np.arange(mask.shape[1]) < lengths[:, np.newaxis]
        if not lengths.all() or (mask != is_token).any():
            raise ValueError(f"{self._its('input_mask')} are not 1 for tokens, then 0 for padding")
        if self._are_packed:
            self.max_seq_length = max(self.max_seq_length, *mask.shape[1:])
            slots = instances["masked_lm_weights"].shape[1]
            self.max_predictions_per_seq = max(self.max_predictions_per_seq, slots)
        steps = np.diff(segments)
        is_back_in_a = (steps < 0) & is_token[:, 1:]
        if is_back_in_a.any() or (segments > is_token).any() or segments[:, 0].any():
            raise ValueError(f"{self._its('segment_ids')} are not 0 for A, 1 for B, 0 for padding")
        last_of_b = ids[np.arange(len(ids)), lengths - 1]
        last_of_a = ids[:, :-1][steps > 0]
        for found, token, where in (
            (ids[:, 0], "[CLS]", "begin"),
            (last_of_a, "[SEP]", "end A"),
            (last_of_b, "[SEP]", "end"),
        ):
            if (others := found[found != vocabulary.ids[token]]).size:
                raise ValueError(
                    f"{self._its('input_ids')} {where} with {others[0]}, not with {token}, which "
                    f"is {vocabulary.ids[token]}: {_OTHER_VOCABULARY}"
                )
        self._check_padding(instances)
        is_real = instances["masked_lm_weights"] > 0
        if (is_real & (instances["masked_lm_positions"] >= lengths[:, np.newaxis])).any():
            raise ValueError(f"{self._its('masked_lm_positions')} are beyond its tokens")

    def _check_padding(self, instances: Instances) -> None:
        is_padding = instances["input_mask"] == 0
        ids = instances["input_ids"][is_padding]
        if not np.isin(ids, (0, self._vocabulary.ids["[PAD]"])).all():
            raise ValueError(f"{self._its('input_ids')} are not 0 where there is padding")
        if instances["segment_ids"][is_padding].any():
            raise ValueError(f"{self._its('segment_ids')} are not 0 for A, 1 for B, 0 for padding")

    def _its(self, name: str) -> str:
        return f"its {self._features[name].name}"

    def _count(self, instances: Instances, counts: Counter[str]) -> None:
        """Adds the counts of `instances.generate_instances`, as far as records show them."""
        ids, mask = instances["input_ids"], instances["input_mask"]
        rows, slots = np.nonzero(instances["masked_lm_weights"])
        read = ids[rows, instances["masked_lm_positions"][rows, slots]]
        originals = instances["masked_lm_ids"][rows, slots]
        is_mask = read == self._vocabulary.ids["[MASK]"]
        is_kept = ~is_mask & (read == originals)
        counts.update(
            instances=len(ids),
            tokens=int(mask.sum()),
            random_next=int(instances["next_sentence_labels"].sum()),
            masked=len(read),
            masked_by_mask=int(is_mask.sum()),
            masked_kept=int(is_kept.sum()),
            masked_by_random=int((~is_mask & ~is_kept).sum()),
            instances_without_mask=len(ids) - len(np.unique(rows)),
        )
        self._masked += len(read)
        self._masked_by_mask += int(is_mask.sum())
        text = ids.copy()
        text[rows, instances["masked_lm_positions"][rows, slots]] = originals
        self._tokens += np.bincount(text[mask > 0], minlength=len(self._tokens))
        is_whole = self._is_whole_word[text[:, :-1]] & (mask[:, 1:] > 0)
        self._whole_words += int(is_whole.sum())
        self._continued += int((is_whole & ~self._vocabulary.begins_word[text[:, 1:]]).sum())


def _whole_words(vocabulary: Vocabulary) -> np.ndarray:
    """Bool [V]: whether a token is a word of its own in any text: punctuation, an ideograph."""
    tokenize = BasicTokenizer(do_lower_case=False).tokenize
    return np.array(
        [
            len(token) == 1 and tokenize(f"a{token}a") == ["a", token, "a"]
            for token in vocabulary.tokens
        ]
    )


def _kind_of(path: Location, record: bytes) -> tuple[str, RowLimits]:
    """The names of a record's features, one of `records.ALIASES`; and their lengths.

    Raises:
      UserError: the record is no instance.
    """
    where = f"record 1 of {path}"
    try:
        found = decode_example(record)
    except ValueError as error:
        raise UserError(f"{where} cannot be adopted: {error}") from error
    names = max(ALIASES, key=lambda names: len(found.keys() & ALIASES[names].values()))
    features = instance_features(RowLimits(1, 1), 1, names)
    wanted = [feature.name for feature in features.values()]
    missing = [name for name in wanted if name not in found]
    if missing == ["next_sentence_labels"]:
        raise UserError(
            f"{where} has no next_sentence_labels: the model is also trained to tell whether B "
            "follows A, so records of masked words alone, such as RoBERTa's, cannot be adopted"
        )
    if "word_starts" in found:
        raise UserError(
            f"{where} has no masks, because `generate --masking=training` made it: train on its "
            "data set, which need not be adopted"
        )
    if missing:
        raise UserError(
            f"{where} is no instance for pretraining BERT: it has no {listed(missing)}, only "
            f"{in_one_line(listed(sorted(found)))}"
        )
    if others := sorted(found.keys() - set(wanted)):
        logging.warning("features that are not read: %s", in_one_line(listed(others)))
    lengths = [
        len(found[features[name].name])
        for name in ("input_ids", "masked_lm_positions", "next_sentence_labels")
    ]
    if not all(lengths):
        raise UserError(f"{where} cannot be adopted: it is empty")
    return names, RowLimits(*lengths)


def _batches(path: Location) -> Iterator[tuple[list[bytes], int]]:
    """Yields a file's records in batches, and the number of its bytes that are read by then.

    Raises:
      UserError: the file is damaged, or is no TFRecord file; after all records before the damage.
    """
    records: list[bytes] = []
    num_records, fault = 0, None
    try:
        with open_records(path) as file:
            stored = getattr(file, "fileobj", file)
            for frame in read_frames(file):
                records.append(record_of(frame))
                num_records += 1
                if len(records) == _RECORDS_PER_BATCH:
                    yield records, stored.tell()
                    records = []
    except (OSError, ValueError) as error:
        fault = error
    if records:
        yield records, size_of(path)
    if fault:
        hint = "" if num_records else "; is it a TFRecord file?"
        raise UserError(f"cannot read record {num_records + 1} of {path}: {fault}{hint}") from fault
