"""Ctrl-C, SIGTERM and SIGHUP, in small programs and in every verb."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"
MARK = "TEST_OF_STOPPING"
# A terminal sends Ctrl-C to all processes of a group, `kill` sends to one process.
SENDERS = {"group": os.killpg, "process": os.kill}
LINES = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "terminated by SIGTERM"),
    signal.SIGHUP: (129, "terminated by SIGHUP"),
    signal.SIGUSR1: (143, "terminated by SIGUSR1"),
}


def reset_signals():
    """Undoes what a shell or `nohup` has set for the tests' own process."""
    for number in LINES:
        signal.signal(number, signal.SIG_DFL)


def catches_sigterm(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


class Command:
    """A process in a group of its own, with its own folder for temporary files."""

    def __init__(self, arguments, directory, prepare=reset_signals):
        self.mark = uuid.uuid4().hex
        self._temporary = directory / "tmp"
        self._temporary.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self._temporary),
            MARK: self.mark,
        }
        self._directory = directory
        with (directory / "stdout").open("wb") as stdout, (directory / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=err,
                start_new_session=True,
                preexec_fn=prepare,  # noqa: PLW1509 - it takes no lock
            )

    @property
    def stdout(self):
        return (self._directory / "stdout").read_text()

    @property
    def stderr(self):
        return (self._directory / "stderr").read_text()

    def wait_for(self, condition):
        while not condition():
            assert self.process.poll() is None, self.stderr
            time.sleep(0.005)

    def catches_sigterm(self):
        """Whether our handlers are there: Python itself has none for SIGTERM."""
        return catches_sigterm(self.process.pid)

    def children_catch_sigterm(self):
        children = psutil.Process(self.process.pid).children()
        return all(catches_sigterm(child.pid) for child in children)

    def is_ready(self):
        return "ready" in self.stdout

    def send(self, number, sender="process"):
        SENDERS[sender](self.process.pid, number)

    def end(self):
        """Waits for the end; returns the exit code and the lines of stderr that are no log."""
        try:
            self.process.wait(120)
            assert self._remaining() == []
        finally:
            for process in self._remaining():
                process.kill()
            self.process.wait()
        assert [*self._temporary.rglob("*"), *self._directory.rglob("*.tmp")] == []
        # A process number may come first; Beam's workers log while they start.
        log = r"(\[\d\] )?\d\d:\d\d:\d\d |WARNING:root:|INFO:__main__:"
        return self.process.returncode, [
            line for line in self.stderr.splitlines() if not re.match(log, line)
        ]

    def _remaining(self):
        """The processes that this one has started and that still run."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(MARK) == self.mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != self.process.pid or self.is_running]

    @property
    def is_running(self):
        return self.process.poll() is None


# Small programs.

PROGRAM = """
import hashlib, os, signal, subprocess, sys, threading, time
from pathlib import Path
import launch.stopping
from launch.stopping import at_once, stopping

def compute():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C code

def ready():
    print("ready", flush=True)

with stopping(["verb", "--flag"]):
{body}
"""


def program(body, directory, **kwargs):
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    command = Command(["-c", PROGRAM.format(body=indented)], directory, **kwargs)
    command.wait_for(command.is_ready)
    return command


def expected(number, name="clozemill verb"):
    code, what = LINES[number]
    return code, [f"{name}: {what}"]


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("number", LINES)
def test_a_signal_ends_in_one_line_after_the_cleaning_up(number, sender, tmp_path):
    body = """
path = Path(os.environ["TMPDIR"], "file")
path.touch()
try:
    ready()
    time.sleep(60)
finally:
    time.sleep(0.2)
    path.unlink()
"""
    command = program(body, tmp_path)
    command.send(number, sender)
    assert command.end() == expected(number)


@pytest.mark.parametrize("ends_by", [signal.SIGTERM, None], ids=["a signal", "itself"])
def test_temporary_files_are_removed_though_libraries_leave_them(ends_by, tmp_path):
    body = """
import atexit, tempfile
tempfile.NamedTemporaryFile(delete=False)
atexit.register(os.rmdir, tempfile.mkdtemp())  # as Beam does when its job server has stopped
assert tempfile.gettempdir().startswith(os.environ["TMPDIR"] + "/clozemill-")
ready()
"""
    body = f"launch.stopping._SECONDS_TO_CLEAN_UP = 0.3\n{body}"
    command = program(body + ("compute()" if ends_by else ""), tmp_path)
    if ends_by:
        command.send(ends_by)
    assert command.end() == (expected(ends_by) if ends_by else (0, []))


def test_further_signals_do_not_disturb_the_cleaning_up(tmp_path):
    body = """
path = Path(os.environ["TMPDIR"], "file")
path.touch()
try:
    ready()
    time.sleep(60)
finally:
    print("cleaning up", flush=True)
    time.sleep(0.5)
    path.unlink()
"""
    command = program(body, tmp_path)
    command.send(signal.SIGINT)
    command.wait_for(lambda: "cleaning up" in command.stdout)
    command.send(signal.SIGINT)
    command.send(signal.SIGTERM)
    assert command.end() == expected(signal.SIGINT)


def test_a_library_that_waits_forever_does_not_prevent_our_own_cleaning_up(tmp_path):
    body = """
launch.stopping._SECONDS_TO_CLEAN_UP = 0.5
path = Path(os.environ["TMPDIR"], "file")
path.touch()
try:
    try:
        ready()
        time.sleep(60)
    finally:
        threading.Event().wait()
finally:
    path.unlink()
"""
    command = program(body, tmp_path)
    command.send(signal.SIGTERM)
    assert command.end() == expected(signal.SIGTERM)


COMPUTING = "ready()\ncompute()"
SWALLOWING = """
ready()
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


@pytest.mark.parametrize("body", [COMPUTING, SWALLOWING], ids=["computes", "swallows"])
def test_code_that_does_not_heed_the_exception_ends_too(body, tmp_path):
    command = program(f"launch.stopping._SECONDS_TO_CLEAN_UP = 0.3\n{body}", tmp_path)
    command.send(signal.SIGTERM)
    assert command.end() == expected(signal.SIGTERM)


@pytest.mark.parametrize("number", LINES)
def test_computing_that_has_nothing_to_clean_up_ends_at_once(number, tmp_path):
    command = program("with at_once():\n    ready()\n    compute()", tmp_path)
    started = time.monotonic()
    command.send(number)
    assert command.end() == expected(number)
    assert time.monotonic() - started < 5


def test_no_child_is_left_though_it_ignores_signals_and_starts_late(tmp_path):
    body = """
START = "trap '' HUP INT TERM; sleep 60 & sleep 60"
def start_and_wait():
    subprocess.run(START, shell=True)
    subprocess.run(START, shell=True)
thread = threading.Thread(target=start_and_wait)
thread.start()
time.sleep(0.2)
ready()
thread.join()
"""
    command = program(body, tmp_path)
    command.send(signal.SIGINT, "group")
    assert command.end() == expected(signal.SIGINT)


def test_what_fails_because_of_the_signal_is_not_reported(tmp_path):
    body = """
import logging
event = threading.Event()
def fail():
    event.wait()
    raise ValueError("in a thread")
class Unraisable:
    def __del__(self):
        raise ValueError("in a finalizer")
thread = threading.Thread(target=fail)
thread.start()
try:
    ready()
    time.sleep(60)
except KeyboardInterrupt:
    event.set()
    thread.join()
    Unraisable()
    logging.error("in a library")
    raise RuntimeError("in its place")
"""
    command = program(body, tmp_path)
    command.send(signal.SIGTERM)
    assert command.end() == expected(signal.SIGTERM)


def test_a_command_under_nohup_goes_on_after_sighup(tmp_path):
    def prepare():
        reset_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    command = program("ready()\ntime.sleep(0.5)", tmp_path, prepare=prepare)
    command.send(signal.SIGHUP)
    assert command.end() == (0, [])


def test_a_verb_may_hold_what_no_line_can_show(tmp_path):
    body = "ready()\ntime.sleep(60)"
    source = PROGRAM.format(body="".join(f"    {line}\n" for line in body.splitlines()))
    odd = source.replace('"verb"', r'"a\nb\udcff"')
    command = Command(["-c", odd], tmp_path)
    command.wait_for(command.is_ready)
    command.send(signal.SIGTERM)
    assert command.end() == expected(signal.SIGTERM, r"clozemill a\nb\udcff")


# The verbs.


@pytest.mark.parametrize(
    ("number", "sender"), [(signal.SIGINT, "group"), (signal.SIGTERM, "process")]
)
@pytest.mark.parametrize("verb", ["generate", "pretrain"])
def test_a_verb_that_has_only_just_started_ends_in_one_line(verb, number, sender, tmp_path):
    command = Command(["-m", "launch", verb], tmp_path)
    command.wait_for(command.catches_sigterm)
    command.send(number, sender)
    assert command.end() == expected(number, f"clozemill {verb}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a corpus of 20 MB, a data set and a run."""
    folder = tmp_path_factory.mktemp("made")
    text = (SAMPLES / "english.txt").read_text("utf-8")
    # Words with numbers make many pairs of pieces, and a trainer of vocabularies slow.
    numbered = (re.sub(r"\b(\w{5})", rf"\g<1>{n}", text) for n in range(20_000_000 // len(text)))
    (folder / "corpus.txt").write_text("\n\n".join(numbered))
    for arguments in (
        [
            "generate",
            *generate_flags(SAMPLES / "english.txt", folder / "data"),
            "--eval_fraction=.2",
            "--num_shards=2",  # `launch` needs one for each process
        ],
        ["pretrain", *pretrain_flags(folder, folder / "run"), "--num_train_steps=1"],
    ):
        subprocess.run([sys.executable, "-m", "launch", *arguments], cwd=ROOT, check=True)
    return folder


def generate_flags(input_file, output_dir):
    vocab_file = SAMPLES / "english_vocab.txt"
    return [
        f"--input_file={input_file}",
        f"--vocab_file={vocab_file}",
        f"--output_dir={output_dir}",
        "--max_seq_length=32",
        "--max_predictions_per_seq=5",
    ]


def pretrain_flags(made, run_dir):
    return [
        f"--data_dir={made / 'data'}",
        f"--output_dir={run_dir}",
        "--model=tiny",
        "--num_warmup_steps=0",
    ]


def arguments_of(case, made, directory):
    corpus, output = made / "corpus.txt", directory / "output"
    pretrain = ["pretrain", *pretrain_flags(made, output)]
    match case:
        case "vocab":
            return ["vocab", f"--input_file={corpus}", f"--output_file={output}"]
        case "generate":
            return ["generate", *generate_flags(corpus, output)]
        case "generate with workers":
            workers = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
            return ["generate", *generate_flags(corpus, output), *workers]
        case "adopt":
            flags = [f"--vocab_file={made / 'data' / 'vocab.txt'}", f"--output_dir={output}"]
            return ["adopt", f"--input_file={made / 'data' / 'train*'}", *flags]
        case "inspect":
            return ["inspect", f"--data_dir={made / 'data'}", "--num_examples=99999"]
        case "verify":
            return ["verify", f"--data_dir={made / 'data'}"]
        case "pretrain":
            return pretrain
        case "launch":
            return ["launch", "--processes=2", "--", *pretrain]
        case "slurm":
            flags = ["--nodes=1", "--gpus_per_node=1", "--time=1:00:00", f"--output_file={output}"]
            return ["slurm", *flags, "--", *pretrain]
        case "kubernetes":
            flags = ["--nodes=1", "--gpus_per_node=1", "--image=x", f"--output_file={output}"]
            paths = ["--data_dir=/data/x", "--output_dir=/runs/x"]
            return ["kubernetes", *flags, "--", "pretrain", *paths, "--model=tiny"]
        case "evaluate":
            return ["evaluate", f"--run_dir={made / 'run'}", f"--data_dir={made / 'data'}"]
        case "export":
            flags = [f"--run_dir={made / 'run'}", f"--output_dir={output}"]
            return ["export", *flags, "--format=saved_model"]


# Seconds after the start; the last ones are in the middle of the work, or after the end.
MOMENTS = {
    "vocab": (0, 0.2, 1, 6, 12),
    "generate": (0, 0.2, 0.5, 1, 4, 8),
    "generate with workers": (0, 0.2, 0.5, 1, 4, 6, 8),
    "adopt": (0, 0.1, 0.3, 0.5),
    "inspect": (0, 0.1, 0.5),
    "verify": (0, 0.1, 0.5),
    "pretrain": (0, 0.2, 1, 4, 8, 16),
    "launch": (0, 0.1, 4, 8, 16),
    "slurm": (0, 0.1),
    "kubernetes": (0, 0.1),
    "evaluate": (0, 0.2, 1, 4, 6),
    "export": (0, 0.2, 1, 4, 6),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "sender"),
    [(signal.SIGINT, "group"), (signal.SIGINT, "process"), (signal.SIGTERM, "process")],
    ids=["Ctrl-C", "SIGINT", "SIGTERM"],
)
@pytest.mark.parametrize(
    ("case", "moment"), [(case, moment) for case in MOMENTS for moment in MOMENTS[case]]
)
def test_a_verb_ends_in_one_line_at_any_moment(case, moment, number, sender, made, tmp_path):
    command = Command(["-m", "launch", *arguments_of(case, made, tmp_path)], tmp_path)
    command.wait_for(command.catches_sigterm)
    time.sleep(moment)
    if not command.is_running:
        assert command.process.returncode == 0, command.stderr
        pytest.skip("the verb has done its work")
    if case == "launch":
        # A signal that is passed on to an interpreter that still starts does not meet our code.
        command.wait_for(command.children_catch_sigterm)
    command.send(number, sender)
    code, lines = command.end()
    verb, (expected_code, what) = case.split()[0], LINES[number]
    # A training that was stopped has its own line in the log, and each process of `launch` one.
    has_log = f"stopped by {number.name}" in command.stderr
    prefixed = re.compile(rf"(\[\d\] )?clozemill \w+: {what}")
    assert "Traceback" not in command.stderr
    assert code == expected_code, command.stderr
    assert all(prefixed.fullmatch(line) for line in lines), command.stderr
    assert has_log or 1 <= len(lines) <= (2 if verb == "launch" else 1), command.stderr
