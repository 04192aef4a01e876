from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.minhash import (
    SHINGLE_TOKENS,
    SKETCH_BINS,
    Bands,
    are_similar,
    keys_of,
    numbered_hashes,
    sketches_of,
)

BANDS = Bands(4, 3)
DOCUMENTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=8)


def flat(documents, dtype=np.uint16):
    return np.array([*chain(*documents)], dtype), np.array([len(each) for each in documents])


def shingles(document):
    """The shingles of a document as a set of tuples."""
    last = max(len(document) - SHINGLE_TOKENS, 0)
    return {tuple(document[first : first + SHINGLE_TOKENS]) for first in range(last + 1)}


def jaccard(first, second):
    first, second = shingles(first), shingles(second)
    return len(first & second) / len(first | second)


def edited(document, share, rng):
    """A document of which about this share of the tokens are others."""
    return np.where(rng.random(len(document)) < share, rng.integers(0, 20_000), document)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS, st.sampled_from([1, 3, 7, 1 << 15]))
def test_a_document_has_the_same_keys_and_sketch_beside_any_others(documents, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.minhash._BLOCK", block)
        keys, sketches = keys_of(*flat(documents), BANDS), sketches_of(*flat(documents))
    assert keys.shape == (len(documents), BANDS.bands)
    for number, document in enumerate(documents):
        alone = flat([document])
        np.testing.assert_array_equal(keys[number], keys_of(*alone, BANDS)[0])
        np.testing.assert_array_equal(sketches[number], sketches_of(*alone)[0])


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS)
def test_documents_of_the_same_shingles_have_the_same_keys_and_no_others_do(documents):
    keys, sketches = keys_of(*flat(documents), Bands(1, 32)), sketches_of(*flat(documents))
    sets = [shingles(document) for document in documents]
    for number, wanted in enumerate(sets):
        same = [each == wanted for each in sets]
        assert np.all(keys == keys[number], axis=1)[same].all()
        assert np.all(sketches == sketches[number], axis=1).tolist() == same
        alike = are_similar(sketches, np.tile(sketches[number], (len(sets), 1)), 1.0)
        assert alike.tolist() == same


def test_no_documents_have_no_keys():
    none = np.empty(0, np.uint16), np.empty(0, np.int64)
    assert keys_of(*none, BANDS).shape == (0, 4)
    assert sketches_of(*none).shape == (0, SKETCH_BINS)


def test_documents_shorter_than_a_shingle_are_similar_only_if_they_are_equal():
    documents = [[7], [7, 7], [7, 7, 7, 7], [7, 8], [7], [0], [0, 0]]
    keys = keys_of(*flat(documents), BANDS)
    equal = [np.all(keys == key, axis=1).tolist() for key in keys]
    assert equal == [[one == other for other in documents] for one in documents]


@pytest.mark.parametrize("similarity", [0.5, 0.65, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_nearly_all_similar_documents_and_few_others(similarity):
    bands = Bands.for_similarity(similarity)

    def found(jaccard):
        return 1 - (1 - jaccard**bands.rows) ** bands.bands

    assert found(similarity) >= 0.98
    assert found(similarity - 0.45) < 0.15
    assert found(0.01) < 1e-4
    assert bands.bands * bands.rows <= 160


def test_the_bands_of_the_usual_similarity_are_those_that_the_docstring_tells():
    assert Bands.for_similarity(0.8) == Bands(8, 4)


@pytest.mark.parametrize("length", [30, 300])
def test_keys_are_shared_as_often_as_the_similarity_tells(length):
    rng = np.random.default_rng(length)
    documents = [rng.integers(0, 20_000, length) for _ in range(60_000 // length)]
    others = [edited(document, 0.03, rng) for document in documents]
    bands = Bands(60, 1)
    first, second = (
        keys_of(*flat([each.tolist() for each in side]), bands) for side in (documents, others)
    )
    expected = np.mean([jaccard(*map(list, pair)) for pair in zip(documents, others, strict=True)])
    assert np.mean(first == second) == pytest.approx(expected, abs=0.015)
    # As often in each band, and in two at once.
    assert np.mean(first == second, axis=0) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("length", [30, 300, 5000])
def test_sketches_estimate_the_similarity(length):
    rng = np.random.default_rng(length)
    errors = []
    for share in np.linspace(0, 0.1, 30):
        document = rng.integers(0, 20_000, length)
        pair = [document.tolist(), edited(document, share, rng).tolist()]
        first, second = sketches_of(*flat(pair))
        steps = np.linspace(0, 1, 2001)
        first, second = (np.tile(sketch, (len(steps), 1)) for sketch in (first, second))
        estimate = steps[are_similar(first, second, steps)].max()
        errors.append(estimate - jaccard(*pair))
    assert abs(np.mean(errors)) < 0.006
    assert np.std(errors) < 0.017


def test_large_ids_count_to_their_last_bit():
    ids = np.array([[70_000] * 6, [70_000 + 65_536] * 6, [70_000] * 6], np.uint32)
    keys = keys_of(ids.ravel(), np.array([6] * 3), BANDS)
    assert [np.all(keys == keys[0], axis=1).tolist()] == [[True, False, True]]


def test_hashes_are_the_same_in_every_build():
    """A folder of duplicates that one build has begun is finished by another."""
    document = flat([[1, 2, 3, 4, 5, 6]])
    assert keys_of(*document, Bands(1, 2)).tolist() == [[0xC872A67D384E5F7]]
    (bins,) = np.nonzero(sketches_of(*document)[0])
    assert bins.tolist() == [616, 884]
    assert numbered_hashes(2, 3)[:2].tolist() == numbered_hashes(2, 2).tolist()
