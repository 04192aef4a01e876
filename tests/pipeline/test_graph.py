"""What the Beam graph adds to the stages; `test_generate.py` runs it."""

import pytest

from pipeline.buckets import BucketPlan
from pipeline.directories import Directories
from pipeline.errors import UserError
from pipeline.graph import _Process
from pipeline.options import GenerateOptions
from pipeline.stages import BuildShard, Work


def test_a_worker_shows_life_before_it_reads_anything(tmp_path, write_vocabulary):
    options = GenerateOptions(["corpus.txt"], write_vocabulary("a"), tmp_path / "data")
    directories = Directories(options.output_dir)
    directories.prepare(options.vocab_file.read_bytes(), {}, {}, overwrite=False)
    work = Work(options, [], BucketPlan.for_corpus(1000, 0.0, 1), [], directories)
    directories.vocabulary.unlink()
    assert not directories.sign_of_life.exists()
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        _Process(BuildShard(work), directories.sign_of_life).setup()
    assert directories.sign_of_life.exists()
    directories.prepare(options.vocab_file.read_bytes(), {}, {}, overwrite=False)
    assert not directories.sign_of_life.exists()  # that of an earlier run counts no more
