#!/bin/sh
# TensorFlow 2.21.0: a Python handler for SIGTERM that a process has installed is silently replaced when
# the process creates tf.distribute.MultiWorkerMirroredStrategy for several workers. TensorFlow logs
# "SIGTERM caught" (preemption_notifier.cc), and the process goes on as if nothing had happened:
# signal.getsignal() still returns the Python handler, but it never runs. A single-worker strategy leaves
# the handler alone, so a program that saves a checkpoint on SIGTERM works on one host and not on two.
# Installing the handler again after the strategy was created takes the signal back.
#
# Seen: "one worker: handler ran", "two workers: handler did not run",
#       "two workers, installed again: handler ran".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1
cat > "$folder/worker.py" <<'PYTHON'
import os, signal, sys, time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

task, again, *addresses = sys.argv[1:]
ran = []


def handler(number, frame):
    ran.append(number)


signal.signal(signal.SIGTERM, handler)
if len(addresses) > 1:
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": addresses}),
            task_type="worker",
            task_id=int(task),
            rpc_layer="grpc",
        )
    )
else:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
assert signal.getsignal(signal.SIGTERM) is handler
if again == "again":
    signal.signal(signal.SIGTERM, handler)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(2)
print("handler ran" if ran else "handler did not run", flush=True)
os._exit(0)
PYTHON
cat > "$folder/main.py" <<'PYTHON'
import socket, subprocess, sys
from pathlib import Path


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def outcome(num_workers, again):
    addresses = [free_address() for _ in range(num_workers)]
    worker = Path(__file__).with_name("worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(task), again, *addresses],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for task in range(num_workers)
    ]
    (found,) = {process.communicate(timeout=120)[0].strip() for process in processes}
    return found


expected = {
    "one worker": (1, "once", "handler ran"),
    "two workers": (2, "once", "handler did not run"),
    "two workers, installed again": (2, "again", "handler ran"),
}
failed = False
for name, (num_workers, again, seen) in expected.items():
    found = outcome(num_workers, again)
    print(f"{name}: {found}")
    failed |= found != seen
sys.exit("the behaviour has changed" if failed else 0)
PYTHON
"$folder/venv/bin/python" "$folder/main.py"
