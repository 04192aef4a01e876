"""The rules that keep the three packages apart."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The contract of a data set (the first four), the rules of masks (the next six), and what all
# packages share.
CONTRACT = {
    f"pipeline.{name}"
    for name in (
        "sentence_pairs",
        "records",
        "manifest",
        "vocabulary",
        "options",
        "draws",
        "masking",
        "ngrams",
        "instances",
        "rows",
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
