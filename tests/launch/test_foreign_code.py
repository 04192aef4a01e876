"""Files of the current directory that have our modules' names are not imported.

Beside the original BERT, for example, lies its own `modeling.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"
FOREIGN = ("modeling.py", "pipeline/__init__.py", "keras.py", "launch.py", "jinja2.py", "numpy.py")
PRETRAIN = (
    *("pretrain", "--data_dir=data", "--output_dir=run", "--model=tiny", "--num_train_steps=2"),
    *("--train_batch_size=4", "--num_warmup_steps=1"),
)
# In place of Slurm's program: it runs the command that follows its own options.
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'


@pytest.fixture
def directory(tmp_path):
    """A directory with foreign files, each of which writes a file when it is imported."""
    for name in FOREIGN:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write(__file__)\n")
    return tmp_path


def run(directory, *command, path=os.environ["PATH"], **environment):
    result = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not (directory / "imported").exists(), (directory / "imported").read_text()
    return result


def clozemill(directory, *arguments, **environment):
    """Runs the command as its entry point does, which does not import from this directory."""
    return run(directory, sys.executable, "-P", "-m", "launch", *arguments, **environment)


def generate(directory, *flags, **environment):
    return clozemill(
        directory,
        "generate",
        f"--input_file={SAMPLES / 'chinese.txt'}",
        f"--vocab_file={SAMPLES / 'chinese_vocab.txt'}",
        *("--output_dir=data", "--max_seq_length=16", "--max_predictions_per_seq=2"),
        *("--dupe_factor=1", "--num_shards=4"),
        *("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
        *flags,
        **environment,
    )


def test_workers_of_generate_import_only_what_pythonpath_names(directory):
    (directory / "segmenters").mkdir()
    (directory / "segmenters" / "mine.py").write_text("def characters(text): return list(text)\n")
    flag = "--word_segmenter=mine:characters"
    result = generate(directory, flag)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()[-1:]
    assert f"{flag} cannot be loaded: No module named 'mine'; PYTHONPATH must name" in line
    result = generate(directory, flag, PYTHONPATH=f"{ROOT}:{directory / 'segmenters'}")
    assert result.returncode == 0, result.stderr


def test_processes_of_launch(directory):
    result = clozemill(directory, "launch", "--processes=2", "--", *PRETRAIN)
    assert result.returncode == 1
    assert "[1] clozemill pretrain: process 1 on " in result.stderr
    assert "data is not a data set" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_processes_of_launch_until_they_have_trained(directory, backend):
    pytest.importorskip(backend)
    assert generate(directory).returncode == 0
    result = clozemill(
        directory,
        *("launch", "--processes=2", "--", *PRETRAIN, f"--backend={backend}"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert result.returncode == 0, result.stderr


def test_the_script_for_slurm(directory):
    flags = ("--nodes=2", "--gpus_per_node=0", "--time=60")
    result = clozemill(directory, "slurm", *flags, "--", *PRETRAIN)
    assert result.returncode == 0, result.stderr
    (directory / "bin").mkdir()
    (directory / "bin" / "srun").write_text(SRUN)
    (directory / "bin" / "srun").chmod(0o755)
    path = f"{directory / 'bin'}:{os.environ['PATH']}"
    result = run(directory, "bash", "pretrain.sbatch", path=path, SLURM_JOB_ID="1")
    assert result.returncode == 1
    assert "clozemill pretrain: data is not a data set" in result.stderr
