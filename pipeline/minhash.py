"""MinHash: documents as short arrays of numbers that tell how much of their text they share.

A document is the set of its shingles, runs of five tokens. The similarity of two documents is the
Jaccard index of their sets: the shingles that both have, divided by those that any has. With a
random order of all shingles, it is the probability that the first shingle of both is the same one
(Broder, "On the resemblance and containment of documents", 1997).

* *Keys* find pairs that may be similar. A key is the hash of `rows` such minima, and a document has
  `bands` of them. Two documents of similarity J have a key in common with the probability
  1 - (1 - J^rows)^bands (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4).
* A *sketch* tells the similarity of a pair: one order of the shingles, cut into 1,024 bins, and of
  each bin the first shingle, of which 8 bits are kept (Li, Owen and Zhang, "One permutation
  hashing", 2012; Li and König, "b-bit minwise hashing", 2010).

Tokens are compared, not characters: what a model sees. So case and accents count only where the
vocabulary knows them, and text without spaces needs no segmenter.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHINGLE_TOKENS = 5
SKETCH_BINS = 1024
# Two documents that are just similar enough share a band with about this probability, and at least
# one of all bands with more than the second.
_PROBABILITY_OF_BAND = 0.4
_PROBABILITY_OF_ANY = 0.98
# Fewer rows would give the same key to documents that share one frequent phrase.
_FEWEST_ROWS, _MOST_ROWS = 3, 32
# The shingles that are hashed at once, so that they stay in the processor's cache.
_BLOCK = 1 << 15
_NOTHING = np.uint32(0xFFFFFFFF)
_VALUES = 255  # of a bin that is not empty


def _mix(x: np.ndarray) -> np.ndarray:
    """Mixes the bits of uint64 numbers: the finalizer of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def numbered_hashes(seed: int, count: int) -> np.ndarray:
    """The hashes of a seed and each of the numbers from 0 on, uint64 [count]."""
    numbers = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(numbers + _mix(np.array([seed], np.uint64)))


_OF_TOKENS = numbered_hashes(1, SHINGLE_TOKENS) | np.uint64(1)


@dataclass(frozen=True)
class Bands:
    """How many keys a document has, and of how many minima each is.

    Attributes:
      bands: the number of keys.
      rows: the number of minima in each.
    """

    bands: int
    rows: int

    @classmethod
    def for_similarity(cls, similarity: float) -> "Bands":
        """The bands that find pairs of at least this similarity, from 0.5 to 1.

        Example: for 0.8, 8 bands of 4 rows, which find 98.5 % of the pairs of 0.8, and 99.9 % of
        those of 0.87.
        """
        rows = _MOST_ROWS
        if similarity < 1:
            wanted = round(math.log(_PROBABILITY_OF_BAND) / math.log(similarity))
            rows = min(max(wanted, _FEWEST_ROWS), _MOST_ROWS)
        misses = 1 - similarity**rows
        if not misses:
            return cls(1, rows)
        return cls(math.ceil(math.log(1 - _PROBABILITY_OF_ANY) / math.log(misses)), rows)


def keys_of(ids: np.ndarray, lengths: np.ndarray, bands: Bands) -> np.ndarray:
    """The keys of documents, uint64 [D, bands].

    Args:
      ids: [T], the token ids of the documents, end to end.
      lengths: [D], the number of tokens of each; not 0.
      bands: how many keys, and of how many minima.
    """
    num_minima = bands.bands * bands.rows
    factors = (numbered_hashes(2, num_minima) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    shifts = (numbered_hashes(3, num_minima) >> np.uint64(32)).astype(np.uint32)
    minima = np.full((num_minima, len(lengths)), _NOTHING)
    for hashes, document, starts, is_shingle in _blocks(ids, lengths):
        x = (hashes >> np.uint64(32)).astype(np.uint32)
        none = np.flatnonzero(~is_shingle)
        here = slice(document, document + len(starts))
        for number in range(num_minima):
            permuted = x * factors[number]
            permuted += shifts[number]
            permuted[none] = _NOTHING
            least = np.minimum.reduceat(permuted, starts)
            np.minimum(minima[number, here], least, out=minima[number, here])
    keys = np.empty((len(lengths), bands.bands), np.uint64)
    for band in range(bands.bands):
        key = np.full(len(lengths), band, np.uint64)
        for row in range(bands.rows):
            key = _mix(key * np.uint64(0x9E3779B97F4A7C15) + minima[band * bands.rows + row])
        keys[:, band] = key
    return keys


def sketches_of(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The sketches of documents, uint8 [D, bins]; a bin without a shingle is 0.

    Args:
      ids: [T], the token ids of the documents, end to end.
      lengths: [D], the number of tokens of each; not 0.
    """
    least = np.full(len(lengths) * SKETCH_BINS, _NOTHING)
    for hashes, document, starts, is_shingle in _blocks(ids, lengths):
        sizes = np.diff(starts, append=len(hashes))
        documents = np.repeat(np.arange(document, document + len(starts)), sizes)
        bins = documents * SKETCH_BINS + (hashes % np.uint64(SKETCH_BINS)).astype(np.int64)
        values = (hashes >> np.uint64(32)).astype(np.uint32)
        np.minimum.at(least, bins[is_shingle], values[is_shingle])
    sketches = (least % np.uint32(_VALUES) + np.uint32(1)).astype(np.uint8)
    sketches[least == _NOTHING] = 0
    return sketches.reshape(-1, SKETCH_BINS)


def are_similar(first: np.ndarray, second: np.ndarray, similarity: float) -> np.ndarray:
    """Whether the documents of each two sketches are estimated to be so similar, bool [N].

    The similarity is the share of bins that hold the same shingle among those that are not empty
    in both. Of other pairs of shingles, one in 255 has the same value, which is taken off. The
    estimate's standard deviation is at most 0.0125 at 0.8, and less for documents of few shingles.

    Args:
      first: uint8 [N, bins].
      second: uint8 [N, bins].
      similarity: the least Jaccard index.
    """
    in_both = (first != 0) & (second != 0)
    same = _count(in_both & (first == second))
    in_any = _count((first | second) != 0)
    # same = alike + (in_both - alike) / 255, and alike / in_any is to be large enough.
    alike = _VALUES * same - _count(in_both)
    return alike >= similarity * (_VALUES - 1) * in_any


def _count(flags: np.ndarray) -> np.ndarray:
    """How many of each row's flags are set, int64 [N]; eight are added at a time, as a uint64."""
    sums = flags.view(np.uint64).sum(axis=1)  # each of its bytes is one of eight sums, up to 128
    return sums.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)


def _blocks(
    ids: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[np.ndarray, int, np.ndarray, np.ndarray]]:
    """Hashes all shingles in blocks, which begin and end anywhere in a document.

    A document shorter than a shingle is one shingle: all its tokens, and zeros.

    Yields:
      uint64 [N], the hashes of what begins at each token; the index of the first document; int64
      [documents in the block], where each begins; bool [N], whether it is a shingle of one document
      or reaches into the next one.
    """
    padded = np.maximum(lengths, SHINGLE_TOKENS)
    ends = np.cumsum(padded)
    values = np.zeros(ends[-1] + SHINGLE_TOKENS - 1 if len(ends) else 0, np.uint32)
    is_token = np.zeros(len(values), bool)
    is_token[: ends[-1] if len(ends) else 0] = True
    for short in np.flatnonzero(lengths < SHINGLE_TOKENS):
        is_token[ends[short] - SHINGLE_TOKENS + lengths[short] : ends[short]] = False
    values[is_token] = ids
    values[is_token] += np.uint32(1)
    for start in range(0, len(values) - SHINGLE_TOKENS + 1, _BLOCK):
        end = min(start + _BLOCK, int(ends[-1]))
        block = values[start : end + SHINGLE_TOKENS - 1].astype(np.uint64)
        hashes = block[: end - start] * _OF_TOKENS[0]
        for place in range(1, SHINGLE_TOKENS):
            hashes += block[place : place + end - start] * _OF_TOKENS[place]
        first, last = np.searchsorted(ends, [start, end - 1], side="right")
        begins = ends[first : last + 1] - padded[first : last + 1]
        is_shingle = np.ones(end - start, bool)
        beyond = ends[first : last + 1, np.newaxis] - np.arange(1, SHINGLE_TOKENS) - start
        is_shingle[beyond[(beyond >= 0) & (beyond < end - start)]] = False
        yield _mix(hashes), int(first), np.maximum(begins - start, 0), is_shingle
