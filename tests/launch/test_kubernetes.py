"""`clozemill kubernetes`: the manifests that it writes, and the Dockerfile of the image."""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from launch.job import COORDINATOR_VARIABLE, NUM_PROCESSES_VARIABLE, TOKEN_VARIABLE

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
NODES = ("--nodes=4", "--gpus_per_node=8", "--image=registry.example.org/clozemill:1")
PLACES = ("--data_dir=/data/base", "--output_dir=/runs/base")
PRETRAIN = ("--", "pretrain", *PLACES, "--model=base")


@pytest.fixture(scope="module")
def kubernetes(run_in_fork, preload):
    preload("launch.command_line", "launch.kubernetes", "modeling.training_options")
    return functools.partial(run_in_fork, "kubernetes")


@pytest.fixture(scope="module")
def manifests(kubernetes):
    """A function that returns the Service and the Job, checked against Kubernetes's schema."""
    validate = pytest.importorskip("kubernetes_validate").validate

    def read(directory, *arguments):
        result = kubernetes(directory, *arguments)
        assert result.returncode == 0, result.stderr
        (file,) = directory.glob("*.yaml")
        documents = list(yaml.safe_load_all(file.read_text("utf-8")))
        for document in documents:
            validate(document, "1.37", strict=True)
        service, job = documents
        return service, job

    return read


def container_of(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def assert_fails(result, message, code):
    assert result.returncode == code, result.stderr
    assert message in result.stderr.splitlines()[0]
    assert (
        len(result.stderr.splitlines()) == code
    )  # wrong flags: a second line says where they are listed


def write_stub(path, script):
    """Writes a program, which stands in the place of another one."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_pods_find_each_other(tmp_path, manifests):
    service, job = manifests(tmp_path, *NODES, "--job_name=bert", *PRETRAIN)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    environment = {
        entry["name"]: entry["value"] for entry in container_of(job)["env"] if "value" in entry
    }
    (port,) = container_of(job)["ports"]
    assert environment == {
        COORDINATOR_VARIABLE: f"bert-0.bert:{port['containerPort']}",
        NUM_PROCESSES_VARIABLE: "4",
    }


def test_the_token_is_in_a_secret_and_not_in_the_file(tmp_path, kubernetes, manifests):
    _, job = manifests(tmp_path, *NODES, "--job_name=bert", "--namespace=lab", *PRETRAIN)
    first = (tmp_path / "pretrain.yaml").read_bytes()
    (token,) = (entry for entry in container_of(job)["env"] if entry["name"] == TOKEN_VARIABLE)
    assert token["valueFrom"] == {"secretKeyRef": {"name": "bert-token", "key": "token"}}
    result = kubernetes(tmp_path, *NODES, "--job_name=bert", "--namespace=lab", *PRETRAIN)
    assert (tmp_path / "pretrain.yaml").read_bytes() == first
    (command,) = (line for line in result.stdout.splitlines() if "create secret" in line)
    assert command.endswith(
        "kubectl create secret generic bert-token --namespace=lab --from-file=token=/dev/stdin"
    )


def test_the_printed_commands_run_as_they_are(tmp_path, kubernetes):
    """With stubs in place of kubectl and openssl."""
    for name, script in (("kubectl", 'printf "%s\\n" "$@"; cat'), ("openssl", f"echo {'0' * 64}")):
        write_stub(tmp_path / "bin" / name, script)
    result = kubernetes(tmp_path, *NODES, "--output_file=a job.yaml", *PRETRAIN)
    lines = result.stdout.replace("then start it with ", "").splitlines()
    run = subprocess.run(
        ["sh", "-c", "\n".join(lines[1:])],
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    create = ["create", "secret", "generic", "clozemill-token", "--from-file=token=/dev/stdin"]
    assert run.stdout.split("\n")[:-1] == [*create, "0" * 64, "apply", "--filename=a job.yaml"]


def test_the_policy_of_the_readme_is_about_the_jobs_pods(tmp_path, manifests):
    service, _ = manifests(tmp_path, *NODES, *PRETRAIN)
    (text,) = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "launch" / "README.md").read_text(), re.DOTALL
    )
    policy = yaml.safe_load(text)
    pytest.importorskip("kubernetes_validate").validate(policy, "1.37", strict=True)
    (rule,) = policy["spec"]["ingress"]
    for selector in (policy["spec"]["podSelector"], rule["from"][0]["podSelector"]):
        assert selector["matchLabels"] == service["spec"]["selector"]


def action(job, exit_code=None, is_disrupted=False):
    """What the Job's failure policy does with an ended pod: the first matching rule's action."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container_of(job)["name"]
            assert rule["onExitCodes"]["operator"] == "In"
            matches = exit_code in rule["onExitCodes"]["values"]
        else:
            assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
            matches = is_disrupted
        if matches:
            return rule["action"]
    return "Count"


def test_the_job_retries_unless_flags_are_wrong(tmp_path, manifests):
    _, job = manifests(tmp_path, *NODES, "--seconds_to_save=90", *PRETRAIN)
    assert action(job, exit_code=2) == "FailJob"
    assert action(job, exit_code=143) == "Ignore"
    assert action(job, exit_code=137, is_disrupted=True) == "Ignore"
    assert action(job, exit_code=1) == "Count"
    # Failures count per pod, because one failing pod takes the others with it. No pod is left
    # waiting for a failed one.
    assert job["spec"]["backoffLimitPerIndex"] == 10
    assert job["spec"]["maxFailedIndexes"] == 0
    assert "backoffLimit" not in job["spec"]
    # These rules need the following settings.
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 90


def test_pods_have_their_volumes_and_gpus(tmp_path, manifests):
    _, job = manifests(
        tmp_path,
        *NODES,
        *("--data_claim=corpora", "--runs_claim=results", "--shared_memory=32Gi"),
        "--cpus_per_node=90",
        *PRETRAIN,
    )
    pod, container = job["spec"]["template"]["spec"], container_of(job)
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    sources = {paths[volume.pop("name")]: volume for volume in pod["volumes"]}
    assert sources == {
        "/data": {"persistentVolumeClaim": {"claimName": "corpora"}},
        "/runs": {"persistentVolumeClaim": {"claimName": "results"}},
        "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
    }
    read_only = {mount["name"] for mount in container["volumeMounts"] if mount.get("readOnly")}
    assert read_only == {"data"}
    assert container["image"] == "registry.example.org/clozemill:1"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}, "requests": {"cpu": 90}}


STORE = ("--data_dir=s3://corpora/base", "--output_dir=s3://runs/base")


def volumes_of(job):
    """What is mounted where."""
    pod = job["spec"]["template"]["spec"]
    sources = {volume.pop("name"): volume for volume in pod["volumes"]}
    mounts = container_of(job)["volumeMounts"]
    assert sources.keys() == {mount["name"] for mount in mounts}
    return {mount["mountPath"]: sources[mount["name"]] for mount in mounts}


def secrets_of(job):
    return [each["secretRef"]["name"] for each in container_of(job).get("envFrom", [])]


def test_directories_on_a_store_need_a_secret_and_no_volume(tmp_path, kubernetes, manifests):
    secret = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret-key"}
    command = (*NODES, "--job_name=bert", "--namespace=lab", "--", "pretrain", *STORE)
    _, job = manifests(tmp_path, *command)
    assert volumes_of(job).keys() == {"/scratch", "/dev/shm"}
    _, job = manifests(tmp_path, *command)
    assert volumes_of(job)["/scratch"] == {"emptyDir": {}}
    variables = {each["name"]: each.get("value") for each in container_of(job)["env"]}
    assert variables["TMPDIR"] == "/scratch"
    assert container_of(job)["args"][-1] == "--cache_dir=/scratch/cache"
    assert secrets_of(job) == ["bert-s3"]
    result = kubernetes(tmp_path, *command, environment=secret)
    assert result.stdout.splitlines()[3].endswith(
        "kubectl create secret generic bert-s3 --namespace=lab --from-env-file=/dev/stdin"
    )
    written = result.stdout + (tmp_path / "pretrain.yaml").read_text()
    assert not [value for value in secret.values() if value in written]


def test_a_cache_of_the_users_own_stays(tmp_path, manifests):
    command = (*NODES, "--", "pretrain", *STORE, "--cache_dir=/mnt/nvme")
    _, job = manifests(tmp_path, *command)
    assert container_of(job)["args"] == list(command[command.index("--") + 1 :])


@pytest.mark.parametrize(
    ("places", "mounts", "stores"),
    [
        (("/data/base", "/runs/base"), {"/data", "/runs"}, []),
        (("/runs/base/data", "/runs/base"), {"/runs"}, []),
        (("/data/base", "gs://runs/base"), {"/data", "/scratch"}, ["gs"]),
        (("az://data/base", "/runs/base"), {"/runs", "/scratch"}, ["az"]),
        (("s3://data/base", "gs://runs/base"), {"/scratch"}, ["gs", "s3"]),
        (("s3://d", "s3://r", "/runs/old"), {"/runs", "/scratch"}, ["s3"]),
    ],
)
def test_a_volume_is_asked_for_only_by_paths(tmp_path, places, mounts, stores, manifests):
    names = ("data_dir", "output_dir", "init_checkpoint")
    flags = [f"--{name}={place}" for name, place in zip(names, places, strict=False)]
    _, job = manifests(tmp_path, *NODES, "--", "pretrain", *flags)
    assert secrets_of(job) == [f"clozemill-{store}" for store in stores]
    assert volumes_of(job).keys() == {*mounts, "/dev/shm"}


@pytest.mark.parametrize(
    ("store", "variables", "content"),
    [
        (
            "s3",
            {"AWS_ACCESS_KEY_ID": "k", "AWS_REGION": "r", "AWS_PROFILE": "p", "HOME": "h"},
            ["AWS_ACCESS_KEY_ID=k", "AWS_REGION=r"],
        ),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "n"}, ["AZURE_STORAGE_ACCOUNT_NAME=n"]),
        (
            "gs",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/my keys/key.json"},
            ["--from-file=GOOGLE_SERVICE_ACCOUNT_KEY=/my keys/key.json"],
        ),
    ],
)
def test_the_printed_command_puts_the_variables_of_the_store_into_its_secret(
    tmp_path, store, variables, content, kubernetes
):
    """With a stub in place of kubectl."""
    flags = [f"--{name}={store}://bucket/{name}" for name in ("data_dir", "output_dir")]
    result = kubernetes(tmp_path, *NODES, "--", "pretrain", *flags)
    stub = write_stub(tmp_path / "bin" / "kubectl", 'printf "%s\\n" "$@"; cat')
    run = subprocess.run(
        ["sh", "-c", result.stdout.splitlines()[3]],
        env={**variables, "PATH": f"{stub.parent}:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    create = ["create", "secret", "generic", f"clozemill-{store}"]
    words = [word for word in run.stdout.splitlines() if word != "--from-env-file=/dev/stdin"]
    assert words[:4] == create
    assert sorted(words[4:]) == content


@pytest.mark.parametrize("flag", ["--data_dir=hdfs://h/d", "--init_checkpoint=https://h/w"])
def test_a_url_of_no_store_writes_nothing(tmp_path, flag, kubernetes):
    result = kubernetes(tmp_path, *NODES, *PRETRAIN, flag)
    assert_fails(result, f"knows no URL like {flag.partition('=')[2]}", 1)
    assert not list(tmp_path.iterdir())


CPUS = ("--nodes=3", "--gpus_per_node=0", "--image=registry.example.org/clozemill:1")
GENERATE = (
    *("generate", "--input_file=s3://text/*.txt,hdfs://h/more", "--vocab_file=gs://text/vocab.txt"),
    "--output_dir=s3://data/base",
)


def test_generate_runs_on_a_cluster_of_spark_of_the_jobs_own(tmp_path, manifests):
    _, job = manifests(tmp_path, *CPUS, "--cpus_per_node=4", "--", *GENERATE, "--dupe_factor=2")
    assert job["spec"]["completions"] == 3
    container = container_of(job)
    assert container["command"] == ["python", "-m", "launch.spark_process"]
    assert importlib.util.find_spec("launch.spark_process")
    assert container["args"] == [*GENERATE, "--dupe_factor=2"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["SPARK_WORKER_CORES"] == "4"
    assert variables["TMPDIR"] == "/scratch"
    assert TOKEN_VARIABLE in variables
    assert secrets_of(job) == ["clozemill-gs", "clozemill-s3"]
    assert volumes_of(job).keys() == {"/scratch", "/dev/shm"}
    assert action(job, exit_code=2) == "FailJob"


def test_generate_writes_to_its_volumes(tmp_path, manifests):
    places = ("--input_file=/data/wiki/*,@/data/more.txt", "--vocab_file=/runs/vocab.txt")
    _, job = manifests(tmp_path, *CPUS, "--", "generate", *places, "--output_dir=/data/base")
    assert volumes_of(job).keys() == {"/data", "/runs", "/dev/shm"}
    assert not [mount for mount in container_of(job)["volumeMounts"] if mount.get("readOnly")]


@pytest.mark.parametrize(
    ("flag", "message", "code"),
    [
        ("--dupe_factors=2", "'dupe_factors'", 2),
        ("--dupe_factor=0", "--dupe_factor=0", 1),
        ("--runner=PrismRunner", "'runner'", 2),
        ("--spark_master=yarn", "remove --spark_master", 2),
        ("--overwrite", "remove --overwrite", 2),
        ("--input_file=s3://text/a,wiki/b", "--input_file=wiki/b is not on a volume", 2),
        ("--output_dir=hdfs://h/data", "knows no URL like hdfs://h/data", 1),
        ("--output_dir=https://h/data", "knows no URL like https://h/data", 1),
    ],
)
def test_flags_that_generate_does_not_take_in_a_job_write_nothing(
    tmp_path, flag, message, code, kubernetes
):
    assert_fails(kubernetes(tmp_path, *CPUS, "--", *GENERATE, flag), message, code)
    assert not list(tmp_path.iterdir())


def test_generate_takes_no_gpus(tmp_path, kubernetes):
    result = kubernetes(tmp_path, *NODES, "--", *GENERATE)
    assert_fails(result, "--gpus_per_node=8: generate needs no GPU", 2)


def test_without_gpus_none_are_requested(tmp_path, manifests):
    _, job = manifests(tmp_path, *NODES, "--gpus_per_node=0", *PRETRAIN)
    assert "resources" not in container_of(job)


def test_names_are_strings_whatever_they_look_like(tmp_path, manifests):
    service, job = manifests(
        tmp_path, *NODES, "--namespace=1", "--data_claim=null", "--runs_claim=1e3", *PRETRAIN
    )
    assert service["metadata"]["namespace"] == job["metadata"]["namespace"] == "1"
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in job["spec"]["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == ["null", "1e3"]


def test_by_default_kubectl_chooses_the_namespace(tmp_path, manifests):
    service, job = manifests(tmp_path, *NODES, *PRETRAIN)
    assert "namespace" not in service["metadata"]
    assert "namespace" not in job["metadata"]


def test_the_command_reaches_the_container_unchanged(tmp_path, manifests):
    (tmp_path / "more.flags").write_text("--model=tiny\n")
    awkward = '--init_checkpoint=/runs/it\'s "ä" \\ 𝄞: - #{{ $(HOME) $x'
    _, job = manifests(
        tmp_path, *NODES, "--", "pretrain", *PLACES, "--flagfile=more.flags", awkward
    )
    assert container_of(job)["command"] == ["clozemill"]
    # The flag file is on this machine, not on the nodes. Kubernetes reads $$ as $.
    expected = ["pretrain", *PLACES, "--model=tiny", awkward.replace("$", "$$")]
    assert container_of(job)["args"] == expected


def test_control_characters_in_arguments_change_nothing(tmp_path, manifests):
    awkward = "".join(map(chr, [*range(1, 32), *range(127, 161), 0x2028, 0x2029, 0xFEFF, 0xFFFE]))
    awkward = f"--init_checkpoint=\n---\n{awkward}\U000e0001𝄞"
    _, job = manifests(tmp_path, *NODES, *PRETRAIN, awkward)
    assert container_of(job)["args"][-1] == awkward


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--output_file=a\nb.yaml",), r"--output_file=a\nb.yaml has characters"),
        (("--image=a\n",), "--image=a"),
        ((*PRETRAIN, "--init_checkpoint=\udcff"), "is not text"),
        (
            ("--nodes=3", "--gpus_per_node=4", *PRETRAIN, "--backend=jax", "--context_parallel=6"),
            "--context_parallel=6 must divide the 4 devices of a process, or be a multiple of them",
        ),
    ],
)
def test_values_that_would_change_the_manifests_or_fail_in_the_job_are_refused(
    tmp_path, flags, message, kubernetes
):
    result = kubernetes(tmp_path, *NODES, *flags, *(() if "--" in flags else PRETRAIN))
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_different_file_is_replaced_only_on_request(tmp_path, kubernetes):
    assert kubernetes(tmp_path, *NODES, *PRETRAIN).returncode == 0
    assert kubernetes(tmp_path, *NODES, *PRETRAIN).returncode == 0
    changed = (*NODES, "--nodes=2", *PRETRAIN)
    assert_fails(kubernetes(tmp_path, *changed), "pretrain.yaml already exists", 1)
    assert kubernetes(tmp_path, "--overwrite", *changed).returncode == 0
    assert "completions: 2\n" in (tmp_path / "pretrain.yaml").read_text()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--nodes=0", "--nodes=0"),
        ("--gpus_per_node=-1", "--gpus_per_node=-1"),
        ("--job_name=Bert", "--job_name=Bert"),
        ("--job_name=bert-", "--job_name=bert-"),
        (f"--job_name={'b' * 53}", "at most 52"),
        ("--namespace=a_b", "--namespace=a_b"),
        ("--data_claim=", "--data_claim="),
        ("--shared_memory=much", "--shared_memory=much"),
        ("--image=", "--image="),
    ],
)
def test_invalid_flags_exit_2_and_write_nothing(tmp_path, flag, message, kubernetes):
    assert_fails(kubernetes(tmp_path, *NODES, flag, *PRETRAIN), message, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag",
    [
        "--data_dir=data",
        "--output_dir=/home/me/run",
        "--output_dir=/data/run",
        "--output_dir=/runs/..",
    ],
)
def test_directories_outside_the_volumes_exit_2(tmp_path, flag, kubernetes):
    result = kubernetes(tmp_path, *NODES, *PRETRAIN, flag)
    assert_fails(result, f"{flag} is not on a volume of the pods", 2)
    assert not list(tmp_path.iterdir())


# The image.

DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text("utf-8").replace("\\\n", "")
DEFAULTS = dict(re.findall(r'^ARG (\w+)="?([^"\n]+)"?$', DOCKERFILE, re.MULTILINE))


def test_the_image_has_the_python_and_beam_versions_of_this_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f">={DEFAULTS['PYTHON_VERSION']}" == project["requires-python"]
    assert DEFAULTS["BEAM_VERSION"] == importlib.metadata.version("apache-beam")
    assert f"apache-beam>={DEFAULTS['BEAM_VERSION'].rpartition('.')[0]}," in " ".join(
        project["dependencies"]
    )
    (extras,) = re.findall(r'"/source\[([\w,]+)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_the_image_copies_everything_that_the_package_consists_of(tmp_path):
    sources = [
        (words[:-1], words[-1])
        for words in map(str.split, re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE))
    ]
    for names, target in sources:
        for name in names:
            place = tmp_path / target.lstrip("/") / (name if target.endswith("/") else "")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, place)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", f"--wheel-dir={tmp_path}", str(tmp_path / "source")),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    packages = ("pipeline", "modeling", "launch")
    assert packed == {
        str(path.relative_to(ROOT))
        for package in packages
        for pattern in ("*.py", "*.jinja", "recipes/*.flags")
        for path in (ROOT / package).rglob(pattern)
    }
