"""Odd values of every flag: a verb does its work, or says in one line why it does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A program that runs a verb with each value of each flag; prints what was not done or said so.
PROGRAM = """
import contextlib, importlib, io, json, os, sys
from absl.testing import flagsaver
from launch import command_line
from launch.flag_files import flags_of

verb, flags, values, command = json.loads(sys.argv[1])
module = importlib.import_module(f"launch.{verb}")

def run(arguments):
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")
    stderr = io.TextIOWrapper(io.BytesIO(), "ascii", errors="backslashreplace")
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout):
        with flagsaver.flagsaver():
            try:
                code = command_line.run([verb, *arguments, *command])
            except SystemExit as error:
                code = error.code
    stdout.flush()
    stderr.flush()
    return code, stderr.buffer.getvalue().decode().splitlines()

for flag in flags_of(module):
    for value in map(os.fsdecode, map(bytes.fromhex, values)):
        others = [f"--{name}={text}" for name, text in flags.items() if name != flag.name]
        try:
            code, lines = run([*others, f"--{flag.name}={value}"])
        except Exception as error:
            code, lines = None, [repr(error)]
        # An empty value is a wrong flag.
        if value == "" and code != 2:
            print(json.dumps([flag.name, value, code, lines]))
        # For wrong flags, a second line says where they are listed.
        if code != 0 and (code not in (1, 2) or len(lines) != code or len(lines[0]) > 20_000):
            print(json.dumps([flag.name, value, code, lines]))
"""
VALUES = [
    *("", " ", "-1", "0", "1", "99999999999999999999999", "9" * 5000, "1e400", "1e-400"),
    *("nan", "inf", "a\nb", "\x1b[31m\u2028", "x" * 5000, "%s{}", "*", "[", "~nobody", "gs://x"),
    *("/dev/zero", "/proc/self/mem", "/dev/null/x", ".", "pipe", "missing/x", "bytes", "nested"),
]
PRETRAIN = ["--", "pretrain", "--data_dir=x", "--output_dir=y", "--model=tiny"]


@pytest.mark.parametrize(
    ("verb", "flags", "command"),
    [
        ("inspect", {"data_dir": "data"}, []),
        ("verify", {"data_dir": "data"}, []),
        (
            "adopt",
            {
                **{"input_file": "data/train*", "eval_file": "data/eval*"},
                **{"vocab_file": "data/vocab.txt", "output_dir": "adopted", "overwrite": 1},
            },
            [],
        ),
        ("vocab", {"input_file": "bytes", "output_file": "vocab", "overwrite": 1}, []),
        (
            "slurm",
            {
                **{"nodes": 2, "gpus_per_node": 1, "time": "1:00:00"},
                **{"output_file": "job", "overwrite": 1},
            },
            PRETRAIN,
        ),
        (
            "kubernetes",
            {
                **{"nodes": 2, "gpus_per_node": 1, "image": "x"},
                **{"output_file": "job", "overwrite": 1},
            },
            PRETRAIN,
        ),
    ],
)
def test_any_value_of_any_flag_works_or_is_an_error_of_one_line(
    verb, flags, command, write_data_set, tmp_path
):
    write_data_set(tmp_path / "data")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "nested").write_text("[" * 100_000)
    values = [value.encode().hex() for value in VALUES] + [b"\xff\xfe".hex()]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([verb, flags, values, command])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
