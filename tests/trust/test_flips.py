"""Flips bits of files that Clozemill writes: its readers must refuse every one, in one line."""

import shutil
from collections import Counter

import pytest

pytestmark = pytest.mark.no_backend

# Of a data set's manifest and a checkpoint's state, each bit; of other files, about so many bits.
FLIPS_OF_OTHER_FILES = 400
FLIPS_OF_FAST_TEST = 200
SECONDS = 600
MOST_SHOWN = 40


def _assert_refused(zygote, report, path, reader: str, most: int | None = None) -> None:
    outcome = zygote.call("flip_bits", str(path), reader, most, seconds=SECONDS)
    assert outcome.value is not None, outcome
    tried, wrong = outcome.value
    counts = Counter(tried=tried, refused=tried - len(wrong))
    counts.update(what for what, _ in wrong)
    report("bits flipped", [(path.name, counts)])
    if wrong:
        shown = [f"{what}: {where}" for what, where in wrong[:MOST_SHOWN]]
        pytest.fail("\n".join([f"{len(wrong)} of {tried} flips", *shown]), pytrace=False)


@pytest.fixture(scope="module")
def data(light, tmp_path_factory, generate_flags):
    """A folder with a finished data set, `data`, and one that lacks its manifest, `unfinished`."""
    folder = tmp_path_factory.mktemp("flips")
    light.succeed("generate", *generate_flags, f"--output_dir={folder / 'data'}")
    unfinished = ["generate", *generate_flags, f"--output_dir={folder / 'unfinished'}"]
    light.die_before("unfinished/manifest.json", folder, unfinished)
    return folder


RECEIPTS = (
    "receipts/train-00000-of-00002.tfrecord.json",
    "tokenized/split-00000.parquet.json",
)


def test_a_few_flips_of_the_manifest_are_refused(data, light, report):
    path = data / "data" / "manifest.json"
    _assert_refused(light, report, path, "data_set", FLIPS_OF_FAST_TEST)


@pytest.mark.parametrize("name", RECEIPTS)
def test_a_few_flips_of_a_receipt_are_refused(name, data, light, report):
    path = data / "unfinished" / "clozemill_in_progress" / name
    _assert_refused(light, report, path, "receipt", FLIPS_OF_FAST_TEST)


@pytest.mark.slow
def test_every_flip_of_the_manifest_is_refused(data, light, report):
    _assert_refused(light, report, data / "data" / "manifest.json", "data_set")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECEIPTS)
def test_every_flip_of_a_receipt_is_refused(name, data, light, report):
    path = data / "unfinished" / "clozemill_in_progress" / name
    _assert_refused(light, report, path, "receipt")


@pytest.fixture
def checkpoint(samples, tmp_path):
    """The newest checkpoint of a run of its own."""
    shutil.copytree(samples / "run", tmp_path / "run")
    return max((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_every_flip_of_a_state_is_refused(checkpoint, full, report):
    _assert_refused(full, report, checkpoint / "state.json", "state")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.npz", "optimizer.npz", "state.json"])
def test_no_flip_of_a_checkpoint_is_loaded(name, checkpoint, full, report):
    _assert_refused(full, report, checkpoint / name, "checkpoint", FLIPS_OF_OTHER_FILES)


@pytest.mark.slow
def test_no_flip_of_weights_is_read(checkpoint, full, report):
    _assert_refused(full, report, checkpoint / "weights.npz", "weights", FLIPS_OF_OTHER_FILES)
