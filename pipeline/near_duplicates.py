"""Finds documents that share most of their text with one before them, by their MinHash keys.

1. Documents with a key in common are a *group*: they may be near copies of each other.
2. Within a group, sketches decide. The first document stays and drops its near copies, then the
   next that is left does so, and so on.

So a document is only dropped if one before it in the corpus is a near copy of it, and no two near
copies stay of a group. Nothing depends on what was compared first.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.duplicates import DOCUMENT
from pipeline.minhash import SKETCH_BINS, are_similar, numbered_hashes

KEY = np.dtype([("key", "<u8"), ("document", DOCUMENT), ("next_key", "<u8")])
"""A document, one of its keys, and the key after that."""
MEMBER = np.dtype([("key", "<u8"), ("document", DOCUMENT)])
"""A document in a group, which has a key of its own."""
SKETCH = np.dtype([("key", "<u8"), ("document", DOCUMENT), ("sketch", "u1", SKETCH_BINS)])
"""A document in a group, and its sketch."""

# Of a group's documents, the first so many meet all others, which meet so many of each other.
_FIRST_OF_GROUP = 1024
# The pairs that are compared at once, whose sketches fit in the processor's cache.
_PAIRS_AT_ONCE = 1 << 10


def keys_of_documents(documents: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Lays out the keys of documents in rows, `KEY` [D · bands].

    Args:
      documents: `DOCUMENT` [D].
      keys: uint64 [D, bands], from `minhash.keys_of`.
    """
    rows = np.empty(keys.shape, KEY)
    rows["key"], rows["next_key"] = keys, np.roll(keys, -1, axis=1)
    rows["document"] = documents[:, np.newaxis]
    return rows.ravel()


def find_groups(rows: np.ndarray) -> np.ndarray:
    """The groups of two or more documents with a key in common, `MEMBER` [members].

    A key of many thousand documents, such as that of a page's frame, would cost memory, and time by
    the square of their number. So such a group is cut into parts: each has the first 1,024
    documents, and 1,024 of the others, sorted by their next key. So copies of one of the first meet
    it. Near copies among the others meet where they have the next key in common, too, which most
    have for at least one of their keys.

    Args:
      rows: `KEY` [rows], all with any of these keys, in any order.
    """
    rows = rows[np.lexsort((rows["document"], rows["key"]))]
    starts = np.flatnonzero(np.concatenate([[True], rows["key"][1:] != rows["key"][:-1]]))
    starts = starts[: len(rows)]
    sizes = np.diff(starts, append=len(rows))
    is_small = (sizes > 1) & (sizes <= 2 * _FIRST_OF_GROUP)
    groups = [_as_members(rows[np.repeat(is_small, sizes)])]
    for group in np.flatnonzero(sizes > 2 * _FIRST_OF_GROUP):
        members = rows[starts[group] : starts[group] + sizes[group]]
        groups += _parts_of_large_group(members)
    return np.concatenate(groups)


def find_near_duplicates(rows: np.ndarray, similarity: float) -> np.ndarray:
    """The near copies in groups, `DOCUMENT` [near duplicates], sorted, each once.

    All groups are gone through at once, so the loop has as many rounds as the most diverse group
    has documents that are no near copies of each other.

    Args:
      rows: `SKETCH` [members] of whole groups, in any order.
      similarity: the least similarity of near copies, see `minhash`.
    """
    order = np.lexsort((rows["document"], rows["key"]))
    keys, sketches = rows["key"], rows["sketch"]
    dropped = []
    while len(order):
        is_first = np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])
        firsts = order[is_first][np.cumsum(is_first) - 1]
        is_near = np.concatenate(
            [
                are_similar(sketches[first], sketches[other], similarity)
                for first, other in zip(_chunks(firsts), _chunks(order), strict=True)
            ]
        )
        dropped.append(rows["document"][order[is_near & ~is_first]])
        order = order[~(is_near | is_first)]
    return np.unique(np.concatenate([np.empty(0, DOCUMENT), *dropped]))


def _parts_of_large_group(members: np.ndarray) -> Iterator[np.ndarray]:
    """The first documents with some of the others, again and again, each time under a new key."""
    first, others = members[:_FIRST_OF_GROUP], members[_FIRST_OF_GROUP:]
    others = others[np.lexsort((others["document"], others["next_key"]))]
    starts = range(0, len(others), _FIRST_OF_GROUP)
    keys = numbered_hashes(int(members["key"][0]), len(starts))
    for key, start in zip(keys, starts, strict=True):
        part = np.concatenate([first, others[start : start + _FIRST_OF_GROUP]])
        part["key"] = key
        yield _as_members(part)


def _as_members(rows: np.ndarray) -> np.ndarray:
    members = np.empty(len(rows), MEMBER)
    members["key"], members["document"] = rows["key"], rows["document"]
    return members


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), _PAIRS_AT_ONCE):
        yield values[start : start + _PAIRS_AT_ONCE]
