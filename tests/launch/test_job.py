import json
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from launch import job
from modeling.job.place import JobPlace
from pipeline.errors import UserError

TOKEN = "0123456789abcdef" * 4
SLURM = {
    "CLOZEMILL_JOB_TOKEN": TOKEN,
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[07-10]",
    "SLURM_PROCID": "2",
    "SLURM_JOB_ID": "4005",
}
KUBERNETES = {
    "CLOZEMILL_JOB_TOKEN": TOKEN,
    "JOB_COMPLETION_INDEX": "3",
    "CLOZEMILL_COORDINATOR_ADDRESS": "pretrain-0.pretrain:29000",
    "CLOZEMILL_NUM_PROCESSES": "4",
}


def tf_config(kind, index, **cluster):
    config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    return {"TF_CONFIG": json.dumps(config), "CLOZEMILL_JOB_TOKEN": TOKEN}


@pytest.fixture(autouse=True)
def _parsed_flags():
    flags.FLAGS.mark_as_parsed()


def test_without_flags_and_variables_a_process_is_the_only_one():
    assert job.job_place({}) == JobPlace()


def test_flags_come_first():
    environment = SLURM | KUBERNETES | tf_config("worker", 0, worker=["a:1", "b:2"])
    with flagsaver.flagsaver(coordinator_address="h:1", num_processes=3, process_id=1):
        assert job.job_place(environment) == JobPlace("h:1", 3, 1, "its flags", TOKEN)


def test_slurm_comes_before_tf_config_and_tf_config_before_kubernetes():
    environment = KUBERNETES | tf_config("worker", 1, worker=["a:1", "b:2"])
    assert job.job_place(environment).found_in == "TF_CONFIG"
    assert job.job_place(environment | SLURM).found_in == "Slurm"


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"process_id": 0}, "--coordinator_address and --num_processes"),
        ({"coordinator_address": "h:1", "num_processes": 2}, "--process_id"),
    ],
)
def test_missing_flags_are_named(given, missing):
    with flagsaver.flagsaver(**given), pytest.raises(flags.Error, match=missing):
        job.job_place({})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[07-10]", "node07"),
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[3,5-9],login", "node3"),
        ("127.0.0.[1-2]", "127.0.0.1"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("n-1.cluster.org,n-2.cluster.org", "n-1.cluster.org"),
    ],
)
def test_slurm_steps_meet_on_their_first_node(nodes, first):
    place = job.job_place(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert place == JobPlace(f"{first}:61005", 4, 2, "Slurm", TOKEN)


def test_slurm_jobs_have_different_ports():
    ports = {
        job.job_place(SLURM | {"SLURM_JOB_ID": str(number)}).host_and_port[1]
        for number in range(1000, 1100)
    }
    assert len(ports) == 100
    assert all(61000 <= port < 65536 for port in ports)


def test_shell_of_a_slurm_batch_job_is_not_one_of_its_processes():
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    assert job.job_place(batch) == JobPlace()
    assert job.job_place(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) == JobPlace()


def test_workers_of_tf_config_come_after_its_chief():
    cluster = {"chief": ["c:1"], "worker": ["a:2", "b:3"]}
    places = [
        job.job_place(tf_config(kind, index, **cluster))
        for kind, index in [("chief", 0), ("worker", 0), ("worker", 1)]
    ]
    assert places == [JobPlace("c:1", 3, i, "TF_CONFIG", TOKEN) for i in range(3)]


def test_without_a_chief_the_first_worker_of_tf_config_is_process_0():
    place = job.job_place(tf_config("worker", 1, worker=["a:2", "b:3"]))
    assert place == JobPlace("a:2", 2, 1, "TF_CONFIG", TOKEN)


def test_tf_config_with_one_task_is_a_single_process():
    assert job.job_place(tf_config("worker", 0, worker=["a:2"])) == JobPlace()
    assert job.job_place({"TF_CONFIG": "{}"}) == JobPlace()
    assert job.job_place({"TF_CONFIG": ""}) == JobPlace()


@pytest.mark.parametrize(
    "environment",
    [
        {"TF_CONFIG": "{"},
        {"TF_CONFIG": "[]"},
        {"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1", "b:1"]}})},
        tf_config("evaluator", 0, worker=["a:1", "b:1"]),
        tf_config("worker", "first", worker=["a:1", "b:1"]),
        tf_config("worker", 2, worker=["a:1", "b:1"]),
        tf_config("worker", 1, worker=[1, 2]),
        tf_config("worker", 1, worker=["a\n:1", "b:1"]),
    ],
)
def test_invalid_tf_config_is_an_error(environment):
    with pytest.raises(UserError, match=r"TF_CONFIG|--process_id=2|--coordinator_ad") as raised:
        job.job_place(environment)
    assert len(str(raised.value).splitlines()) == 1


def test_pod_of_an_indexed_job_gets_its_number_from_kubernetes():
    assert job.job_place(KUBERNETES) == JobPlace(
        "pretrain-0.pretrain:29000", 4, 3, "the Kubernetes Job", TOKEN
    )


def test_pods_of_an_indexed_job_without_a_coordinator_are_single_processes():
    assert job.job_place({"JOB_COMPLETION_INDEX": "3"}) == JobPlace()


# The token.

PLACE = {"coordinator_address": "h:1", "num_processes": 2, "process_id": 1}


@pytest.fixture
def token_of(tmp_path):
    """A function that returns the token of a process with this file and this variable."""

    def find(content=None, variable=None, path=tmp_path / "token"):
        if content is not None:
            path.write_bytes(content)
        environment = {} if variable is None else {"CLOZEMILL_JOB_TOKEN": variable}
        has_file = content is not None or path.name != "token"
        with flagsaver.flagsaver(**PLACE, job_token_file=str(path) if has_file else None):
            return job.job_place(environment).token

    return find


def test_the_token_comes_from_its_file_or_its_variable(token_of):
    assert token_of(content=f"{TOKEN}\n".encode()) == TOKEN
    assert token_of(variable=f" {TOKEN}\n") == TOKEN
    assert token_of(content=TOKEN.encode(), variable="f" * 64) == TOKEN


@pytest.mark.parametrize("variable", [None, "", " \n"])
def test_a_job_of_several_hosts_without_a_token_is_refused(token_of, variable):
    with pytest.raises(UserError, match=r"h:1 need a secret.* --job_token_file=FILE"):
        token_of(variable=variable)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"0" * 31,
        b"0" * 1025,
        b"0" * (1 << 20),
        b"0" * 32 + b" " + b"0" * 32,
        b"0" * 32 + b"\n" + b"0" * 32,
        b"0" * 32 + b"\0",
        b"0" * 32 + b"\xff",
        "é".encode() * 32,
    ],
)
def test_an_invalid_token_is_refused_but_not_shown(token_of, content):
    with pytest.raises(UserError, match=r"job_token_file=.*token must hold one word") as raised:
        token_of(content=content)
    assert len(str(raised.value).splitlines()) == 1
    assert "0000" not in str(raised.value)


def test_an_invalid_token_in_the_variable_is_refused(token_of):
    with pytest.raises(UserError, match="CLOZEMILL_JOB_TOKEN must hold one word"):
        token_of(variable="secret")


@pytest.mark.parametrize("name", ["missing", ".", "a\nb", "a\0b"])
def test_a_token_file_that_cannot_be_read_is_named(token_of, tmp_path, name):
    with pytest.raises(UserError, match=r"--job_token_file=.* cannot be read: ") as raised:
        token_of(path=tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_a_token_file_whose_reading_fails_is_named(token_of):
    with pytest.raises(UserError, match="--job_token_file=/proc/self/mem cannot be read: "):
        token_of(path=Path("/proc/self/mem"))


def test_processes_of_one_host_need_no_token():
    with flagsaver.flagsaver(**PLACE | {"coordinator_address": "127.0.0.1:1"}):
        assert job.job_place({}).token == ""
