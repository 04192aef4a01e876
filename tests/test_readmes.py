"""READMEs and pages: lines are short, links lead somewhere, the command line takes the commands."""

import ast
import functools
import importlib
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from unicodedata import east_asian_width

import pytest
from absl import flags

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PLACES = ("", "pipeline", "modeling", "launch", "data_samples", "tests/**", "findings/**")
PAGES = sorted(ROOT.glob("launch/recipes/*.md"))
READMES = sorted(
    [path for place in PLACES for path in ROOT.glob(f"{place}/README.md".lstrip("/"))] + PAGES
)
LONGEST_PAGE = 135
WIDEST_LINE = 120
CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# In a command: "and so on", a number and a flag file of the reader's own.
ELLIPSIS = "…"
NUMBER = re.compile(r"(?<==)[NI]$")
OWN_FLAG_FILE = re.compile(r"--flagfile=[A-Z]")
JOB_VERBS = ("sweep", "launch", "slurm", "kubernetes")
# What the command line says of a required flag that is not given, and of one without its value.
MISSING_FLAG = re.compile(
    r"(\w+)=None\b.*(?: must have a value other than None|: give either --)", re.DOTALL
)
MISSING_VALUE = re.compile(r"Missing value for flag|expected one argument")

each_readme = pytest.mark.parametrize(
    "readme", READMES, ids=lambda path: str(path.relative_to(ROOT))
)


def columns(line):
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in line)


def anchors(markdown):
    """The anchors of the headings, as GitHub makes them."""
    headings = HEADING.findall(CODE_BLOCK.sub("", markdown))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(readme):
    """The relative links that lead nowhere."""
    for _, target in LINK.findall(CODE_BLOCK.sub("", readme.read_text("utf-8"))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = readme.parent / path if path else readme
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            yield target


def linked_functions(markdown):
    """Links whose text is a name in code and whose target is a module: (name, target)."""
    for text, target in LINK.findall(markdown):
        if re.fullmatch(r"`[\w.]+`", text) and target.endswith(".py") and ".py" not in text:
            yield text.strip("`"), target


def defines(file, name):
    """Whether a module defines a function, or a class and its method."""
    if not file.exists():
        return False
    body = ast.parse(file.read_text("utf-8")).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        if not found:
            return False
        body = found[0].body
    return isinstance(found[0], ast.FunctionDef)


def commands(markdown):
    """The commands of `clozemill` in code: lines of blocks, with what continues them, and spans."""
    lines = []
    for language, block in CODE_BLOCK.findall(markdown):
        if language in ("", "sh", "bash"):
            lines += re.sub(r"\\\n", " ", block).split("\n")
    lines += CODE_SPAN.findall(CODE_BLOCK.sub("", markdown))
    for line in lines:
        command = line.strip().removeprefix("$ ")
        if re.match(r"clozemill [a-z]", command):
            yield command


@contextmanager
def without_flags_of_others():
    """The modules of `launch` are imported anew, with no flag but their own."""
    flag_values = vars(flags.FLAGS)
    values_before = dict(flag_values)
    modules_before = take_modules_of_launch()
    flag_values.update(vars(flags.FlagValues()))
    try:
        yield
    finally:
        flag_values.clear()
        flag_values.update(values_before)
        take_modules_of_launch()
        sys.modules.update(modules_before)


def take_modules_of_launch():
    """Those that are imported, which are then imported no longer."""
    names = [name for name in sys.modules if name.partition(".")[0] == "launch"]
    return {name: sys.modules.pop(name) for name in names}


def complaint(verb, words):
    """What the command line says of a verb's flags, or None; nothing is run."""
    with without_flags_of_others():
        program = importlib.import_module("launch.command_line")
        if verb not in program.VERBS:
            return f"unknown verb {verb!r}"
        module = importlib.import_module(f"launch.{verb}")
        own, job_commands = program._split_command(words, module)
        try:
            for beam_flags in program._parse_flags(verb, own, module):
                module.parse_beam_options(beam_flags)
            for job_command in job_commands:
                importlib.import_module("launch.generate_command").read_job_command(job_command)
        except flags.Error as error:
            return str(error)
    return None


def problem_of(command):
    """What is wrong with a command of a README, or None.

    With `…` in it, or without any flag, it stands for a command that has the required flags.
    """
    _, verb, *words = shlex.split(command, comments=True)
    is_part = ELLIPSIS in words or not words
    words = [word for word in words if word != ELLIPSIS and not OWN_FLAG_FILE.match(word)]
    words = [NUMBER.sub("1", word) for word in words]
    if is_part and verb in JOB_VERBS and "--" not in words:
        words += ["--", "pretrain"]
    problem = complaint(verb, words)
    while is_part and problem and (missing := MISSING_FLAG.search(problem)):
        flag = f"--{missing[1]}=1"
        if flag in words:
            break
        is_after_dashes = re.match(r"\w+ --:", problem)
        words = [*words, flag] if is_after_dashes else [flag, *words]
        problem = complaint(verb, words)
    return problem


@functools.cache
def is_known(flag):
    """Whether a verb takes this flag, which may lack its value."""
    # Those with the most flags come first, because each attempt imports a verb anew.
    by_flags = sorted(verbs(), key=lambda verb: verb not in ("pretrain", "generate"))
    problems = (problem_of(f"clozemill {verb} … {shlex.quote(flag)}") for verb in by_flags)
    return any(not problem or MISSING_VALUE.search(problem) for problem in problems)


def flags_in_text(markdown):
    """The flags that code spans show without a command."""
    for span in CODE_SPAN.findall(CODE_BLOCK.sub("", markdown)):
        if re.match(r"--\w", span):
            yield from (word for word in shlex.split(span) if word.startswith("--"))


def verbs():
    with without_flags_of_others():
        return list(importlib.import_module("launch.command_line").VERBS)


@each_readme
def test_lines_are_short(readme):
    lines = readme.read_text("utf-8").splitlines()
    long = {number: columns(line) for number, line in enumerate(lines, 1)}
    assert not {number: width for number, width in long.items() if width > WIDEST_LINE}


@each_readme
def test_code_spans_end_on_their_line(readme):
    lines = CODE_BLOCK.sub("", readme.read_text("utf-8")).splitlines()
    assert not [line for line in lines if line.count("`") % 2]


@each_readme
def test_relative_links_lead_somewhere(readme):
    assert not list(broken_links(readme))


@each_readme
def test_linked_functions_are_defined_where_the_link_leads(readme):
    found = linked_functions(readme.read_text("utf-8"))
    assert not [name for name, target in found if not defines(readme.parent / target, name)]


@each_readme
def test_commands_have_flags_that_the_command_line_takes(readme, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands(readme.read_text("utf-8"))
    problems = {command: problem_of(command) for command in found}
    assert not {command: problem for command, problem in problems.items() if problem}


@each_readme
def test_flags_in_the_text_are_those_of_a_verb(readme):
    found = flags_in_text(readme.read_text("utf-8"))
    assert not [flag for flag in found if not is_known(flag)]


@each_readme
def test_make_has_the_targets_that_are_named(readme):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", readme.read_text("utf-8"), re.MULTILINE)
    assert set(named) <= targets


@each_readme
def test_python_in_blocks_compiles(readme):
    for language, block in CODE_BLOCK.findall(readme.read_text("utf-8")):
        if language == "python":
            compile(block, readme.name, "exec")


def test_the_readme_of_the_command_line_leads_to_all_pages():
    targets = {target for _, target in LINK.findall((ROOT / "launch/README.md").read_text("utf-8"))}
    assert {f"recipes/{page.name}" for page in PAGES} <= targets
    assert {page.name for page in PAGES} == {"LANGUAGE.md", "DOMAIN.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_are_read_in_minutes(page):
    assert len(page.read_text("utf-8").splitlines()) <= LONGEST_PAGE


def test_the_root_readme_is_read_in_minutes():
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1300


def test_the_root_readme_follows_a_document_through_nine_functions():
    rows = re.findall(r"^\| (\d) \|(.*)$", README.read_text("utf-8"), re.MULTILINE)
    assert [hop for hop, _ in rows] == list("123456789")
    functions = [list(linked_functions(row)) for _, row in rows]
    assert [len(found) for found in functions] == [1] * 9
    assert len({name for found in functions for name, _ in found}) == 9


def test_the_root_readme_shows_all_verbs():
    shown = {command.split()[1] for command in commands(README.read_text("utf-8"))}
    assert shown == set(verbs())


def test_the_root_readme_leads_to_all_others():
    targets = {target.partition("#")[0] for _, target in LINK.findall(README.read_text("utf-8"))}
    rooms = [path for path in READMES if path.parent.parent == ROOT and path != README]
    assert {str(path.relative_to(ROOT)) for path in rooms} <= targets


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("clozemill generate --input_file=A --vocab_file=V --output_dir=D --seed=1", "seed"),
        ("clozemill generate --input_file=A --vocab_file=V", "output_dir"),
        ("clozemill generate … --runner=X --direct_num_workers=many", "direct_num_workers"),
        ("clozemill export --run_dir=R --output_dir=O --format=pickle", "pickle"),
        ("clozemill export … --checkpoint=C --run_dir=R", "run_dir"),
        ("clozemill launch --processes=2 -- pretrain --model=huge …", "huge"),
        ("clozemill launch --processes=2 -- evaluate …", "evaluate"),
        ("clozemill pretrain --flagfile=launch/recipes/none.flags …", "none.flags"),
        ("clozemill pretrain … stray", "stray"),
        ("clozemill train", "unknown verb"),
    ],
)
def test_a_wrong_command_is_found(command, problem, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert problem in problem_of(command)


@pytest.mark.parametrize(
    "command",
    [
        "clozemill slurm",
        "clozemill launch --processes=2 -- pretrain …",
        "clozemill generate … --runner=PortableRunner --job_endpoint=HOST:8099   # a job service",
        "clozemill pretrain --data_dir=DATA --output_dir=RUN --gradient_accumulation_steps=N",
    ],
)
def test_placeholders_are_no_problem(command):
    assert problem_of(command) is None


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# A, b\n[a](#a-b) [b](#b) [c](README.md#a-b) [d](none.md) [e](https://a.b)\n"
    )
    assert list(broken_links(readme)) == ["#b", "none.md"]


def test_commands_are_found_in_blocks_and_spans():
    markdown = "```\n$ clozemill a --b \\\n    --c\nclozemillx\n```\nand `clozemill d`, clozemill e"
    assert list(commands(markdown)) == ["clozemill a --b      --c", "clozemill d"]


def test_flags_of_no_verb_are_found():
    markdown = "`--dry_run`, `--runner=… --dryrun`, `--nodes`, `--precision=float8`, `tool --any`"
    unknown = [flag for flag in flags_in_text(markdown) if not is_known(flag)]
    assert unknown == ["--dryrun", "--precision=float8"]


def test_flags_and_modules_of_others_stay():
    def state():
        return {name: module for name, module in sys.modules.items() if "launch" in name}, set(
            flags.FLAGS
        )

    before = state()
    assert problem_of("clozemill inspect --data_dir=DATA") is None
    assert state() == before
