"""`clozemill slurm`: the batch script that it writes. tests/cluster/ runs it on a real cluster."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMITS = ("--nodes=4", "--gpus_per_node=8", "--time=24:00:00")
PRETRAIN = ("--", "pretrain", "--data_dir=data", "--output_dir=run", "--model=base")


@pytest.fixture(scope="module")
def slurm(run_in_fork, preload):
    preload("launch.command_line", "launch.slurm", "modeling.training_options")
    return functools.partial(run_in_fork, "slurm")


def assert_fails(result, message, code):
    assert result.returncode == code, result.stderr
    assert message in result.stderr.splitlines()[0]
    assert (
        len(result.stderr.splitlines()) == code
    )  # wrong flags: a second line says where they are listed


def directives(script):
    """The script's options for sbatch, as words."""
    lines = script.read_text("utf-8").splitlines()
    return [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line[8:])]


def write_program(directory, name, script):
    """Writes a stub in place of one of Slurm's programs and returns its folder."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/bash\n{script}\n")
    (directory / name).chmod(0o755)
    return directory


def run_script(directory, srun, scontrol="exit 1", **variables):
    """Runs the script in this folder with stubs in place of srun and scontrol."""
    bin_dir = write_program(directory / "bin", "srun", srun)
    write_program(bin_dir, "scontrol", scontrol)
    return subprocess.run(
        ["bash", "pretrain.sbatch"],
        cwd=directory,
        env={"PATH": f"{bin_dir}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_script_requests_what_the_flags_say(tmp_path, slurm):
    directory = tmp_path / "a folder"
    directory.mkdir()
    result = slurm(
        directory,
        *LIMITS,
        *("--partition=gpu", "--account=lab", "--cpus_per_node=96", "--job_name=bert-base"),
        "--seconds_to_save=120",
        *PRETRAIN,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "pretrain.sbatch: submit it with sbatch pretrain.sbatch\n"
    assert set(directives(directory / "pretrain.sbatch")) == {
        *("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=96"),
        *("--job-name=bert-base", "--time=24:00:00", "--partition=gpu", "--account=lab"),
        *("--output=%x-%j.log", "--open-mode=append", f"--chdir={directory}"),
        *("--requeue", "--signal=B:USR1@120"),
    }


def test_flags_that_are_not_given_are_left_to_the_cluster(tmp_path, slurm):
    slurm(tmp_path, "--nodes=1", "--gpus_per_node=0", "--time=90", *PRETRAIN)
    script = tmp_path / "pretrain.sbatch"
    names = {word.partition("=")[0] for word in directives(script)}
    assert not names & {"--gpus-per-node", "--cpus-per-task", "--partition", "--account"}
    assert "--cpus-per-task" not in script.read_text()


@pytest.mark.parametrize("cpus", [[], ["--cpus_per_node=3"]])
def test_srun_runs_the_command_unchanged(tmp_path, cpus, slurm):
    (tmp_path / "more.flags").write_text("# a comment\n--model=tiny\n")
    awkward = '--data_dir=it\'s $HOME; "a" \\ & `b` *'
    result = slurm(
        tmp_path,
        *LIMITS,
        *cpus,
        *("--", "pretrain", awkward, "--output_dir", "run", "--flagfile=more.flags"),
    )
    assert result.returncode == 0, result.stderr
    run = run_script(tmp_path, srun='printf "%s\\n" "$@"; exit 7')
    assert run.returncode == 7
    assert run.stdout.splitlines()[1:] == [
        "--kill-on-bad-exit=1",
        *("--label", "--export=ALL"),
        *(["--cpus-per-task=3"] if cpus else []),
        *(sys.executable, "-m", "launch"),
        *("pretrain", awkward, "--output_dir", "run", "--model=tiny"),
    ]


STORE = ("--data_dir=s3://data", "--output_dir=s3://run")


@pytest.mark.parametrize(
    ("flags", "cache"),
    [
        (PRETRAIN[2:], []),
        (STORE, ["--cache_dir=/own disk/clozemill-{uid}"]),
        (("--data_dir=data", STORE[1]), ["--cache_dir=/own disk/clozemill-{uid}"]),
        ((*STORE, "--cache_dir=/mnt/nvme"), []),
    ],
)
def test_each_node_has_a_cache_of_its_own_for_a_store(tmp_path, flags, cache, slurm):
    result = slurm(tmp_path, *LIMITS, "--", "pretrain", *flags)
    assert result.returncode == 0, result.stderr
    # A task has the TMPDIR of its node, as the stub of srun gives it.
    srun = 'shift 3; export TMPDIR="/own disk"; exec "$@"'
    python = write_program(tmp_path / "bin", "python", 'printf "%s\\n" "$@"')
    script = tmp_path / "pretrain.sbatch"
    script.write_text(script.read_text().replace(sys.executable, str(python / "python")))
    run = run_script(tmp_path, srun=srun, TMPDIR="/of the batch host")
    assert run.returncode == 0, run.stderr
    cache = [word.format(uid=os.getuid()) for word in cache]
    assert run.stdout.splitlines()[1:] == ["-m", "launch", "pretrain", *flags, *cache]


def test_generate_runs_on_a_cluster_of_spark_of_the_jobs_own(tmp_path, slurm):
    generate = ("generate", "--input_file=it's,s3://b/c", "--vocab_file=v", "--output_dir=s3://d")
    limits = ("--nodes=4", "--gpus_per_node=0", "--time=90")
    result = slurm(tmp_path, *limits, "--cpus_per_node=3", "--", *generate)
    assert result.stdout == "generate.sbatch: submit it with sbatch generate.sbatch\n"
    (tmp_path / "generate.sbatch").rename(tmp_path / "pretrain.sbatch")
    run = run_script(tmp_path, srun='printf "%s\\n" "$@"')
    assert run.stdout.splitlines()[4:] == [
        *("--cpus-per-task=3", sys.executable, "-m", "launch.spark_process"),
        *generate,
    ]


def test_a_grid_of_generate_is_refused(tmp_path, slurm):
    result = slurm(tmp_path, *LIMITS, "--grid=dupe_factor=1,2", "--", "generate")
    assert result.returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--output_dir=", "--input_file=", "--tokenized_dir="])
def test_an_empty_flag_of_generate_is_refused(tmp_path, slurm, flag):
    """As an unset variable of the shell gives it."""
    given = ("--input_file=s3://b/c", "--vocab_file=v", "--output_dir=s3://d/e", flag)
    result = slurm(tmp_path, *LIMITS, "--gpus_per_node=0", "--", "generate", *given)
    assert result.returncode == 2
    assert f"{flag.removesuffix('=')} is empty" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_script_holds_no_credentials(tmp_path, slurm):
    secret = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret-key"}
    result = slurm(tmp_path, *LIMITS, "--", "pretrain", *STORE, environment=secret)
    written = result.stdout + (tmp_path / "pretrain.sbatch").read_text()
    assert not [value for value in secret.values() if value in written]


def test_each_start_of_a_job_draws_a_token_that_only_its_processes_see(tmp_path, slurm):
    slurm(tmp_path, *LIMITS, *PRETRAIN)
    script = (tmp_path / "pretrain.sbatch").read_text()
    tokens = set()
    for _ in range(2):
        run = run_script(tmp_path, srun='echo "$@"; printenv CLOZEMILL_JOB_TOKEN')
        *_, command, token = run.stdout.splitlines()
        assert re.fullmatch("[0-9a-f]{64}", token)
        assert token not in command + script
        tokens.add(token)
    assert len(tokens) == 2


def test_each_task_of_a_sweeps_array_runs_a_point(tmp_path, slurm):
    grid = "--grid=learning_rate=1e-3,1e-4;init_checkpoint=it's $HOME"
    result = slurm(tmp_path, *LIMITS, grid, *PRETRAIN)
    assert result.returncode == 0, result.stderr
    assert {"--array=0-1", "--output=%x-%A_%a.log"} < set(directives(tmp_path / "pretrain.sbatch"))
    for task, rate in enumerate(("0.001", "0.0001")):
        environment = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": str(task)}
        run = run_script(
            tmp_path,
            srun='printf "%s\n" "$@"; exit 143',
            scontrol='echo "$@ PreemptTime=2026-11-26T14:05:42"',
            **environment,
        )
        words = run.stdout.splitlines()
        assert f"--learning_rate={rate}" in words
        assert "--init_checkpoint=it's $HOME" in words
        (output_dir,) = {word for word in words if word.startswith("--output_dir=run/")}
        assert f"learning_rate={rate}" in output_dir
        assert words.index("--output_dir=run") < words.index(output_dir)
        # Only this task, which may have the number of the whole array.
        assert words[-1].startswith(f"requeue 1_{task} ")


AWKWARD = (
    "--init_checkpoint=a\n#SBATCH --nodes=9\nrm -r x\r\n",
    "--data_dir=\t\x0b\x1b[2J\x7f\x85\u2028é",
)


def test_control_characters_in_arguments_and_in_the_path_of_python_change_nothing(tmp_path):
    python = "/a\n#SBATCH --nodes=9\nb/python"
    code = "import sys; from launch.command_line import run; sys.executable = sys.argv.pop(1); "
    subprocess.run(
        [
            *(sys.executable, "-c", f"{code} sys.exit(run(sys.argv[1:]))", python),
            *("slurm", *LIMITS, *PRETRAIN, *AWKWARD),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    run = run_script(tmp_path, srun='printf "%s\\0" "$@" > words')
    assert run.returncode == 0, run.stderr
    words = (tmp_path / "words").read_bytes().decode().split("\0")
    assert words[3:-1] == [python, "-m", "launch", *PRETRAIN[1:], *AWKWARD]
    before_commands = (tmp_path / "pretrain.sbatch").read_text("utf-8").partition("\necho")[0]
    assert "--nodes=9" not in before_commands


@pytest.mark.parametrize("name", ["it's", 'a"b', "a #b", "a%jb", "$HOME `id`", "\t\x1b"])
def test_the_script_starts_in_a_directory_of_any_name(tmp_path, name, slurm):
    directory = tmp_path / name
    directory.mkdir()
    assert slurm(directory, *LIMITS, *PRETRAIN).returncode == 0
    assert f"--chdir={directory}" in directives(directory / "pretrain.sbatch")


@pytest.mark.parametrize(
    ("name", "shown"), [("a\n#SBATCH --nodes=9\nb", r"a\n#SBATCH --nodes=9\nb"), ("a\\b", r"a\b")]
)
def test_a_directory_whose_name_sbatch_would_misread_is_refused(tmp_path, name, shown, slurm):
    directory = tmp_path / name
    directory.mkdir()
    result = slurm(directory, *LIMITS, *PRETRAIN)
    assert_fails(result, f"{shown} has a line end or a backslash", 1)
    assert not list(directory.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--output_file=a\nb.sbatch",), r"--output_file=a\nb.sbatch has characters"),
        (("--output_file=\x1b[2J",), r"--output_file=\x1b[2J has characters"),
        (("--output_file=\udcff",), r"--output_file=\udcff is not text"),
        (("--partition=gpu\n#SBATCH",), "--partition=gpu"),
        (("--job_name=a\n",), "--job_name=a"),
        (("--time=24:00:00\n",), "--time=24:00:00"),
        ((*PRETRAIN, "--num_train_steps=-1"), "--num_train_steps=-1 must lie between"),
        ((*PRETRAIN, "--masked_lm_prob=7"), "--masked_lm_prob=7 must be a share"),
        ((*PRETRAIN, "--context_parallel=2"), "--context_parallel=2 needs --backend=jax"),
        (
            ("--grid=context_parallel=4,3", *PRETRAIN, "--backend=jax"),
            "--context_parallel=3 does not divide the number of devices, 32: give a divisor of it",
        ),
        ((*PRETRAIN, "--init_checkpoint="), "after --: --init_checkpoint is empty"),
        ((*PRETRAIN, "--init_checkpoint=\udcff"), r"--init_checkpoint=\udcff is not text"),
    ],
)
def test_values_that_would_change_the_script_or_fail_in_the_job_are_refused(
    tmp_path, flags, message, slurm
):
    result = slurm(tmp_path, *LIMITS, *flags, *(() if "--" in flags else PRETRAIN))
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("srun_exits", "preempted_at", "expected", "is_requeued"),
    [
        (0, "None", 0, False),
        (2, "None", 2, False),
        (1, "2026-11-26T14:05:42", 1, False),
        # 143 comes from processes that were ended after another failed, or that were preempted.
        (143, "None", 1, False),
        (143, "2026-11-26T14:05:42", 143, True),
    ],
)
def test_a_job_ends_as_its_processes_do(
    tmp_path, srun_exits, preempted_at, expected, is_requeued, slurm
):
    slurm(tmp_path, *LIMITS, *PRETRAIN)
    scontrol = f'echo "$@ PreemptTime={preempted_at}"'
    run = run_script(tmp_path, srun=f"exit {srun_exits}", scontrol=scontrol)
    assert run.returncode == expected
    assert ("requeue 1 " in run.stdout) == is_requeued


def test_a_different_file_is_replaced_only_on_request(tmp_path, slurm):
    script = tmp_path / "pretrain.sbatch"
    assert slurm(tmp_path, *LIMITS, *PRETRAIN).returncode == 0
    first = script.read_text()
    assert slurm(tmp_path, *LIMITS, *PRETRAIN).returncode == 0
    changed = ("--nodes=2", *LIMITS[1:])
    assert_fails(slurm(tmp_path, *changed, *PRETRAIN), "pretrain.sbatch already exists", 1)
    assert script.read_text() == first
    assert slurm(tmp_path, *changed, "--overwrite", *PRETRAIN).returncode == 0
    assert "--nodes=2" in directives(script)


def test_submit_prints_the_id_of_the_job(tmp_path, slurm):
    path = write_program(tmp_path / "bin", "sbatch", 'echo "42;cluster"')
    result = slurm(tmp_path, *LIMITS, "--submit", *PRETRAIN, path=path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "pretrain.sbatch: job 42\n"


def test_sbatch_that_refuses_or_is_not_installed(tmp_path, slurm):
    refusal = "sbatch: error: invalid partition specified: gpu"
    path = write_program(tmp_path / "bin", "sbatch", f"echo '{refusal}' >&2; exit 1")
    result = slurm(tmp_path, *LIMITS, "--submit", *PRETRAIN, path=path)
    assert_fails(result, f"pretrain.sbatch was written but not submitted: {refusal}", 1)
    result = slurm(tmp_path, *LIMITS, "--submit", *PRETRAIN, path=tmp_path)
    assert_fails(result, "sbatch is not installed", 1)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--nodes=0", "--nodes=0"),
        ("--gpus_per_node=-1", "--gpus_per_node=-1"),
        ("--time=0", "--time=0"),
        ("--time=a day", "--time=a day"),
        ("--time=1:2:3:4", "--time=1:2:3:4"),
        ("--time=-1", "--time=-1"),
        ("--time=5:00", "--time=5:00 must be longer than --seconds_to_save=300"),
        ("--job_name=Two Words", "--job_name=Two Words"),
        ("--partition=a b", "--partition=a b"),
        ("--account=", "--account="),
        ("--tasks=1", "tasks"),
    ],
)
def test_invalid_flags_exit_2_and_write_nothing(tmp_path, flag, message, slurm):
    assert_fails(slurm(tmp_path, *LIMITS, flag, *PRETRAIN), message, 2)
    assert not list(tmp_path.iterdir())


def test_all_forms_of_time_that_sbatch_accepts():
    code = "import sys; from launch.slurm import seconds_of; print(*map(seconds_of, sys.argv[1:]))"
    times = {
        "90": 5400,
        "2:30": 150,
        "1:02:03": 3723,
        "1-0": 86400,
        "1-2:03": 93780,
        "1-2:03:04": 93784,
        "1-": 0,
        "1h": 0,
        "": 0,
    }
    result = subprocess.run(
        [sys.executable, "-c", code, *times],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(word) for word in result.stdout.split()] == list(times.values())


def test_a_wrong_flag_of_pretrain_writes_nothing(tmp_path, slurm):
    result = slurm(tmp_path, *LIMITS, *PRETRAIN, "--num_train_step=5")
    assert_fails(result, "'num_train_step'", 2)
    assert not list(tmp_path.iterdir())
