"""What an instance holds: `--sentence_pairs`, which also decides the heads of a model."""

from enum import StrEnum


class SentencePairs(StrEnum):
    """What an instance holds, and what its `next_sentence_labels` say."""

    NEXT = "next"
    """`[CLS] A [SEP] B [SEP]`; 0: B follows A in its document, 1: B is from another one."""
    ORDER = "order"
    """`[CLS] A [SEP] B [SEP]`; 0: B follows A in its document, 1: A follows B."""
    NONE = "none"
    """`[CLS] text [SEP]`; always 0."""
