"""Kills each verb at each of its changes to files, looks at what is left, and repeats the command.

After the kill, nothing that counts may be half. The same command again must succeed, give the bytes
of a command that was never killed, and leave nothing else behind.
"""

import random
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.manifest import DataSet
from pipeline.verification import verify

pytestmark = pytest.mark.no_backend

# Of a case with more changes, the first and the last third of these and a sample between them.
MOST_POINTS = 60
POINTS_OF_FAST_TESTS = 5
KILLED = -9
FORMATS = ("huggingface", "original", "onnx", "saved_model", "keras")
# What a killed command may leave until it is repeated.
UNFINISHED = ("*.tmp", "*.tmp/*", "*/clozemill_in_progress*")


@dataclass(frozen=True)
class Case:
    """A command to kill.

    Attributes:
      arguments: the command; {work} is the folder that it writes in.
      output: what it writes there.
      kind: what that is: data, run, export or file.
      before: a command that prepares the folder.
      dies_before: the file before whose first change that command is killed; "" if it is not.
      folder: an empty folder there.
      format: of an export.
    """

    arguments: tuple[str, ...]
    output: str
    kind: str
    before: tuple[str, ...] = ()
    dies_before: str = ""
    folder: str = ""
    format: str = ""


def points_of(changes: list[str], most: int, seed: str) -> list[int]:
    """The numbers of changes to die at, from 1; of the writes to a file, the first and the last.

    If there are more than `most`, these are the first and the last third of `most`, and a sample.
    """
    numbers = [
        number
        for number, change in enumerate(changes, 1)
        if change not in changes[number - 2 : number - 1] or change not in changes[number:][:1]
    ]
    if len(numbers) <= most:
        return numbers
    third = most // 3
    between = random.Random(seed).sample(numbers[third:-third], most - 2 * third)
    return [*numbers[:third], *sorted(between), *numbers[-third:]]


def without_log(stderr: str) -> str:
    return "\n".join(line for line in stderr.splitlines() if not line[:2].isdigit())


class Killing:
    """Runs a case with and without a kill, in the same folder each time."""

    def __init__(self, zygote, content_of, case: Case, folder: Path):
        self._zygote, self._content_of = zygote, content_of
        self._case = case
        self._work, self._pristine = folder / "work", folder / "pristine"
        self._work.mkdir(parents=True)
        if case.folder:
            (self._work / case.folder).mkdir()
        if case.before:
            arguments = self._filled_in(case.before)
            if case.dies_before:
                zygote.die_before(case.dies_before, self._work, arguments)
            else:
                zygote.succeed(*arguments)
        shutil.copytree(self._work, self._pristine)
        self._before = self._content_of(self._work)
        self._digest_before = self._digest() if self._before else None
        self.changes = zygote.succeed(*self._arguments, watched=self._work).value
        self._after = self._content_of(self._work)
        self._digest_after = self._digest()

    @property
    def _arguments(self) -> list[str]:
        return self._filled_in(self._case.arguments)

    def _filled_in(self, arguments) -> list[str]:
        return [argument.replace("{work}", str(self._work)) for argument in arguments]

    def problems_at(self, point: int) -> dict[str, str]:
        """Kills the command at a change and repeats it; what is wrong, by kind of problem."""
        shutil.rmtree(self._work)
        shutil.copytree(self._pristine, self._work)
        killed = self._zygote.run(*self._arguments, watched=self._work, deadly=point)
        if killed.code != KILLED:
            return {"not killed": str(killed)}
        problems = {}
        if half := self._half():
            problems["half"] = half
        repeated = self._zygote.run(*self._arguments)
        if repeated.code:
            problems["refused"] = without_log(repeated.stderr)
            return problems
        found = self._content_of(self._work)
        if left := sorted(found.keys() - self._after.keys()):
            problems["left-overs"] = ", ".join(left)
        wrong = [name for name in self._after if found.get(name) != self._after[name]]
        if wrong or self._digest() != self._digest_after:
            problems["other bytes"] = ", ".join(wrong) or "other weights"
        return problems

    def _half(self) -> str:
        """What is neither as before the command nor as after it, in words."""
        found = {
            name: content
            for name, content in self._content_of(self._work).items()
            if not any(fnmatch(name, pattern) for pattern in UNFINISHED)
        }
        output = self._work / self._case.output
        match self._case.kind:
            case "data":
                if (output / "manifest.json").exists():
                    try:
                        return "; ".join(verify(DataSet.read(output)))
                    except UserError as error:
                        return str(error)
            case "export":
                return self._half_export(found)
            case "run":
                found = {
                    name: content
                    for name, content in found.items()
                    if "/checkpoints/" not in name and not name.endswith("metrics.jsonl")
                }
                if damage := self._zygote.call("damage_of_run", str(output)).value:
                    return "; ".join(damage)
        known = (self._before, self._after)
        half = [
            name
            for name, content in found.items()
            if not name.endswith("/") and content not in [each.get(name) for each in known]
        ]
        return ", ".join(half)

    def _half_export(self, found) -> str:
        if not found:
            return ""  # the folder is absent
        names = ", ".join(found)
        try:
            digest = self._digest()
        except AssertionError:
            return f"an export that does not open: {names}"
        states = {self._digest_before: self._before, self._digest_after: self._after}
        if digest in states and found == states[digest]:
            return ""
        weights = {self._digest_before: "those of before", self._digest_after: "the new ones"}
        return f"an export whose weights are {weights.get(digest, 'neither')}: {names}"

    def _digest(self) -> str | None:
        """The digest of an export's weights; None if there is none, or of anything else."""
        output = self._work / self._case.output
        is_export = self._case.kind == "export" and output.is_dir()
        if not is_export or all(path.suffix == ".tmp" for path in output.iterdir()):
            return None
        outcome = self._zygote.call("digest_of_export", str(output), self._case.format)
        assert outcome.value, outcome.stderr
        return outcome.value


def _assert_survives(
    zygote, content_of, report, folder: Path, name: str, case: Case, most: int = MOST_POINTS
) -> None:
    killing = Killing(zygote, content_of, case, folder)
    points = points_of(killing.changes, most, name)
    counts, problems = Counter(tried=len(points)), []
    for point in points:
        found = killing.problems_at(point)
        counts.update(list(found) or ["fine"])
        where = f"{name}, {point} of {len(killing.changes)}, {killing.changes[point - 1]}"
        problems += [f"{where}: {kind}: {text}" for kind, text in found.items()]
    report(f"killed at {len(points)} of {len(killing.changes)} changes", [(name, counts)])
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def generate_cases(flags: tuple[str, ...] = (), text: Path = Path()) -> dict[str, Case]:
    plain = Case(("generate", *flags, "--output_dir={work}/data"), "data", "data")

    def with_flags(*more: str) -> Case:
        return replace(plain, arguments=(*plain.arguments, *more))

    mixture = (f"--mixture={text / 'mixture.toml'}", *flags[1:])
    more = ("--drop_near_duplicates=0.8", "--eval_fraction=0.2")
    mixed = Case(("generate", *mixture, *more, "--output_dir={work}/data"), "data", "data")
    overwriting = replace(with_flags("--overwrite"), before=(*plain.arguments, "--random_seed=1"))
    return {
        "generate": plain,
        "generate --tokenized_dir": with_flags("--tokenized_dir={work}/tokenized"),
        "generate --drop_duplicates": with_flags("--drop_duplicates"),
        "generate --drop_near_duplicates": with_flags("--drop_near_duplicates=0.8"),
        "generate --mixture": mixed,
        "generate --eval_fraction": with_flags("--eval_fraction=0.3"),
        "generate --overwrite, finished": overwriting,
        "generate --overwrite, unfinished": replace(overwriting, dies_before="data/manifest.json"),
    }


def file_cases(text: Path) -> dict[str, Case]:
    vocab = ("vocab", f"--input_file={text / 'corpus.txt'}", "--output_file={work}/vocab.txt")
    new, other = (*vocab, "--vocab_size=300"), (*vocab, "--vocab_size=250")
    nodes = ("--nodes=2", "--gpus_per_node=1")
    command = ("--", "pretrain", "--data_dir=/data/D", "--output_dir=/runs/R", "--model=base")
    slurm = ("slurm", "--time=1:00:00", *nodes, "--output_file={work}/job")
    kubernetes = ("kubernetes", "--image=image", *nodes, "--output_file={work}/job")
    cases = {
        "vocab": Case(new, "vocab.txt", "file"),
        "vocab --overwrite": Case((*new, "--overwrite"), "vocab.txt", "file", other),
    }
    for verb in (slurm, kubernetes):
        renamed = (*verb, "--job_name=other", *command)
        cases[verb[0]] = Case((*verb, *command), "job", "file")
        cases[f"{verb[0]} --overwrite"] = Case(
            (*verb, "--overwrite", *command), "job", "file", renamed
        )
    return cases


def run_cases(flags: tuple[str, ...], data: Path) -> dict[str, Case]:
    pretrain = ("pretrain", *flags, f"--data_dir={data}", "--output_dir={work}/run")
    six, ten = (*pretrain, "--num_train_steps=6"), (*pretrain, "--num_train_steps=10")
    keep = "--keep_checkpoints=1"
    evaluate = ("evaluate", f"--data_dir={data}", "--run_dir={work}/run")
    return {
        "pretrain": Case((*six, keep), "run", "run"),
        "pretrain, evaluating": Case((*six, "--eval_every_steps=3"), "run", "run"),
        "pretrain, resuming": Case((*ten, keep), "run", "run", (*six, keep)),
        "evaluate": Case(evaluate, "run", "run", six),
    }


def export_cases(samples: Path) -> dict[str, Case]:
    cases = {}
    for name in FORMATS:
        export = ("export", f"--format={name}", "--output_dir={work}/out")
        new, other = (
            (*export, f"--run_dir={samples / run}", "--overwrite") for run in ("run", "other_run")
        )
        cases |= {
            f"export {name}": Case(new[:-1], "out", "export", format=name),
            f"export {name}, empty folder": Case(
                new[:-1], "out", "export", folder="out", format=name
            ),
            f"export {name} --overwrite": Case(new, "out", "export", other, format=name),
        }
    return cases


@pytest.fixture
def assert_survives(content_of, report, tmp_path):
    """A function that kills a case at its points, reports, and fails with what is wrong."""
    return partial(_assert_survives, content_of=content_of, report=report, folder=tmp_path)


@pytest.mark.parametrize("name", ["generate", "vocab --overwrite", "slurm"])
def test_a_command_killed_at_a_few_changes_can_be_repeated(
    name, light, generate_flags, small_text, assert_survives
):
    cases = generate_cases(generate_flags, small_text) | file_cases(small_text)
    assert_survives(light, name=name, case=cases[name], most=POINTS_OF_FAST_TESTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", generate_cases())
def test_generate_killed_at_any_change_resumes(
    name, light, generate_flags, small_text, assert_survives
):
    assert_survives(light, name=name, case=generate_cases(generate_flags, small_text)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", file_cases(Path()))
def test_a_file_is_whole_whenever_its_writer_is_killed(name, light, small_text, assert_survives):
    assert_survives(light, name=name, case=file_cases(small_text)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", run_cases((), Path()))
def test_a_run_killed_at_any_change_resumes(name, full, pretrain_flags, samples, assert_survives):
    assert_survives(full, name=name, case=run_cases(pretrain_flags, samples / "data")[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", export_cases(Path()))
def test_an_export_is_whole_or_absent_whenever_it_is_killed(name, full, samples, assert_survives):
    assert_survives(full, name=name, case=export_cases(samples)[name])
