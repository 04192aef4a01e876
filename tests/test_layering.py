"""The rules that keep the three packages apart."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The contract of a data set (the first five), the rules of masks (the next six), the pieces of new
# words (the next two), and what all packages share.
CONTRACT = {
    f"pipeline.{name}"
    for name in (
        "sentence_pairs",
        "pre_tokenizers",
        "records",
        "manifest",
        "vocabulary",
        "options",
        "draws",
        "masking",
        "ngrams",
        "instances",
        "rows",
        "tokenization",
        "foreign_vocabularies",
        "storage",
        "files",
        "json_files",
        "errors",
        "templates",
    )
}


# The rooms of `modeling`: each may import those before it, none after it.
LADDER = ("job", "step", "checkpoints", "training", "export")


def imports_of(package):
    """The files of a package, and the modules that each imports, as absolute names."""
    for path in sorted((ROOT / package).rglob("*.py")):
        file = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file} has a relative import"
                yield file, node.module
                # `from modeling.checkpoints import huggingface` imports that module too.
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)


def top_level(package):
    return {(file, module.partition(".")[0]) for file, module in imports_of(package)}


def loaded_by(statement, backend="tensorflow"):
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def test_pipeline_knows_nothing_of_training():
    forbidden = {"keras", "tensorflow", "jax", "modeling", "launch"}
    assert not {(file, name) for file, name in top_level("pipeline") if name in forbidden}


def test_modeling_knows_of_pipeline_only_the_record_contract():
    found = {
        ".".join(module.split(".")[:2])
        for _, module in imports_of("modeling")
        if module.startswith("pipeline")
    }
    assert found == CONTRACT


def test_rooms_of_modeling_form_a_ladder():
    """The spine imports no room; a room imports the spine, itself and the rooms before it."""
    rooms = {path.parent.name for path in (ROOT / "modeling").glob("*/__init__.py")}
    assert rooms == set(LADDER)
    arrows_up = []
    for file, module in imports_of("modeling"):
        room = (*file.split("/")[1:-1], "spine")[0]
        imported = (*module.split(".")[1:2], "")[0]
        if module.startswith("modeling.") and imported in LADDER:
            allowed = LADDER[: LADDER.index(room) + 1] if room in LADDER else ()
            if imported not in allowed:
                arrows_up.append((file, module))
    assert not arrows_up


def test_modeling_knows_nothing_of_beam_and_the_command_line():
    forbidden = {"apache_beam", "launch"}
    assert not {(file, name) for file, name in top_level("modeling") if name in forbidden}


def test_flags_are_defined_in_launch_only():
    for package in ("pipeline", "modeling"):
        for path in (ROOT / package).rglob("*.py"):
            assert "flags" not in {
                alias.name
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.ImportFrom) and node.module == "absl"
                for alias in node.names
            }, path


def test_importing_all_of_modeling_loads_no_beam():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "modeling").rglob("*.py")
    ]
    assert "modeling.training.loop" in modules
    loaded = loaded_by(f"import {', '.join(modules)}")
    assert "keras" in loaded
    assert "apache_beam" not in loaded


@pytest.mark.parametrize(
    ("verb", "needed", "unwanted"),
    [
        # It imports Beam while its worker processes are at work.
        ("generate", "pyarrow", {"keras", "tensorflow", "apache_beam", "grpc", "modeling"}),
        ("adopt", "google_crc32c", {"keras", "tensorflow", "apache_beam", "modeling"}),
        ("verify", "google_crc32c", {"keras", "tensorflow", "apache_beam", "modeling"}),
        # Before the backend is chosen, and at once for --help.
        ("pretrain", "modeling", {"keras", "tensorflow", "jax", "apache_beam"}),
        ("inspect", "modeling", {"keras", "tensorflow", "jax", "apache_beam"}),
        ("evaluate", "absl", {"keras", "tensorflow", "jax", "apache_beam"}),
        ("export", "absl", {"keras", "tensorflow", "jax", "apache_beam"}),
    ],
)
def test_a_verb_loads_only_what_it_needs(verb, needed, unwanted):
    loaded = loaded_by(f"import launch.{verb}")
    assert needed in loaded
    assert not loaded & unwanted


def test_the_workers_of_spark_load_no_beam():
    loaded = loaded_by("import pipeline.stages, pipeline.spark")
    assert "pyarrow" in loaded
    assert not loaded & {"apache_beam", "grpc", "pyspark", "tensorflow"}


def test_options_and_config_load_neither_keras_nor_a_backend():
    loaded = loaded_by("import modeling.config, modeling.training_options, modeling.step.devices")
    assert "modeling" in loaded
    assert not loaded & {"keras", "tensorflow", "jax", "numpy"}


def test_updates_by_jax_need_no_tensorflow():
    """From the model to the compiled step and its checkpoints."""
    pytest.importorskip("jax")
    loaded = loaded_by(
        "import modeling.step.backend, modeling.checkpoints.run_checkpoints, "
        "modeling.training.run_directory",
        backend="jax",
    )
    assert "jax" in loaded
    assert "tensorflow" not in loaded


# Where bytes are: the modules that know, and those that deal with what is never on a store.
KNOWS_WHERE_BYTES_ARE = {
    "pipeline/storage.py": "paths and objects",
    "pipeline/files.py": "whole files and directories, locks, scratch",
    "pipeline/trees.py": "the names in folders",
    "pipeline/paths.py": "pipes, sockets and devices",
    "pipeline/stores.py": "the user's files of credentials",
    "pipeline/store_locks.py": "/proc, for the processes of this machine",
    "pipeline/disk_space.py": "the room on this machine's disks",
    "pipeline/stages.py": "the source of this package",
    "pipeline/word_segmentation.py": "the source of the user's segmenter",
    "pipeline/segmenters.py": "the dictionaries of packages",
    "pipeline/spark.py": "Spark's own folders, and the log of its Java",
    "pipeline/portable_runner.py": "the programs of other runners",
    "modeling/checkpoints/foreign_files.py": "links, which Hugging Face's cache has",
    "modeling/checkpoints/run_checkpoints.py": "folders that earlier builds have left on a disk",
    "modeling/checkpoints/tensorflow1.py": "the prefix that a TensorFlow checkpoint tells",
    "modeling/export/output_directory.py": "directories of this machine that become exports",
    "modeling/shard_cache.py": "the cache on this machine's disk",
    "modeling/training/loop.py": "the picture of the losses, drawn on this machine's disk",
    "modeling/training/metrics.py": "the lines of metrics on this machine's disk",
    "modeling/training/run_writer.py": "files on this machine's disk, to be sent",
    "modeling/training/tracker_sender.py": "what the trackers' libraries write on a disk",
    "modeling/training/tracking.py": "the user's ~/.netrc",
    "launch/banners.py": "standard error, kept in a file for a moment",
    "launch/cache_flags.py": "--cache_dir, on this machine",
    "launch/command_line.py": "/dev/null",
    "launch/flag_files.py": "--flagfile, on this machine",
    "launch/job.py": "--job_token_file, on this machine",
    "launch/kubernetes.py": "the manifests that are written for kubectl",
    "launch/slurm.py": "the script that is written for sbatch",
    "launch/spark_process.py": "Spark's programs and its configuration, on this machine",
    "launch/stopping.py": "/proc, /dev/null, the process's own folder for temporary files",
    "launch/sweep.py": "the logs of its processes",
}
MODULES_OF_FILES = {"shutil", "glob", "tempfile", "fcntl"}
# These look at no file.
HARMLESS = {"shutil.which", "shutil.copyfileobj", "glob.escape"}
FUNCTIONS_OF_OS = {
    *("open", "stat", "lstat", "access", "chmod", "utime", "truncate", "link", "symlink"),
    *("readlink", "listdir", "scandir", "walk", "mkdir", "makedirs", "rmdir", "removedirs"),
    *("remove", "unlink", "rename", "renames", "replace"),
}
FUNCTIONS_OF_OS_PATH = {
    *("exists", "lexists", "isfile", "isdir", "islink", "ismount", "getsize", "getmtime"),
    *("realpath", "samefile"),
}
# What a `StoredPath` has not. To write is no such method, because files are written under the
# names of local files that `whole_file` and its like give; mypy knows those from other places.
METHODS_OF_DISKS = {
    *("stat", "lstat", "rename", "rmdir", "symlink_to", "hardlink_to", "chmod", "readlink"),
    *("is_mount", "is_symlink", "is_fifo", "is_socket", "samefile", "walk", "resolve"),
}


def uses_of_disks(path):
    """Line and name of each use of this machine's files in a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called, name = node.func, ast.unparse(node.func)
        method = called.attr if isinstance(called, ast.Attribute) else ""
        module, _, function = name.partition(".")
        is_file_of = {
            "os": function in FUNCTIONS_OF_OS
            or function.removeprefix("path.") in FUNCTIONS_OF_OS_PATH,
            "open": not function,
            "io": function == "open",
            "Path": bool(node.args) or function in ("cwd", "home"),
        }.get(module, module in MODULES_OF_FILES and name not in HARMLESS)
        is_renamed = method == "replace" and len(node.args) == 1 and not node.keywords
        if is_file_of or is_renamed or (method in METHODS_OF_DISKS and module != "os"):
            yield node.lineno, name


def test_only_few_modules_know_where_bytes_are():
    """Elsewhere, text becomes a path by `location`, and a path may be an object of a store.

    So no other module opens, lists, renames or removes by means of its own, or makes a `Path`.
    """
    found = {
        str(path.relative_to(ROOT)): list(uses_of_disks(path))
        for package in ("pipeline", "modeling", "launch")
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    others = {file: uses for file, uses in found.items() if uses}
    assert {file: others[file] for file in others.keys() - KNOWS_WHERE_BYTES_ARE.keys()} == {}
    assert KNOWS_WHERE_BYTES_ARE.keys() - others.keys() == set(), "no longer"


@pytest.mark.parametrize(
    "line",
    [
        *('open("x")', 'io.open("x")', 'os.remove("x")', 'os.path.getsize("x")', "os.scandir()"),
        *('shutil.rmtree("x")', 'glob.glob("*")', "tempfile.mkdtemp()", "fcntl.flock(f, 2)"),
        *('Path("x")', "Path.cwd()", "path.rename(other)", "path.replace(other)", "path.stat()"),
    ],
)
def test_what_knows_where_bytes_are_is_found(line, tmp_path):
    (tmp_path / "module.py").write_text(f"def f(path):\n    {line}\n")
    assert [number for number, _ in uses_of_disks(tmp_path / "module.py")] == [2]
    (tmp_path / "module.py").write_text(
        'location("x").open("rb")\ntext.replace("a", "b")\nreplace(x, y=1)\nos.getpid()\n'
        'path.read_bytes()\nshutil.which("x")\nos.path.join("a", "b")\npath: Path = x\n'
    )
    assert list(uses_of_disks(tmp_path / "module.py")) == []
