"""Kills `generate` at its requests to a store, and repeats the command.

After the kill, no object may be half. The same command again must give the bytes of a run on a
disk, and leave nothing else behind, not even a lock.
"""

import pytest

from pipeline.errors import UserError
from pipeline.manifest import DataSet
from pipeline.verification import verify
from tests.trust.store_kills import MOMENTS, Killing

pytestmark = pytest.mark.no_backend

MOST_REQUESTS = 60
POINTS_OF_FAST_TEST = 4
# More flags of each command; before the last one, the others have made a data set in its place.
CASES = {
    "generate": [("--num_shards=3",)],
    "generate --tokenized_dir": [("--tokenized_dir={place}/tokenized",)],
    "generate --drop_duplicates": [("--drop_duplicates",)],
    "generate --drop_near_duplicates": [("--drop_near_duplicates=0.8",)],
    "generate --mixture": [
        ("--mixture={text}/mixture.toml", "--drop_near_duplicates=0.8"),
    ],
    "generate --overwrite": [("--random_seed=1", "--num_shards=3"), ("--overwrite",)],
}


class KillingGenerate(Killing):
    def half(self, before):
        """What is neither as before the command nor as after it."""
        data_dir = self.place / "data"
        if (data_dir / "manifest.json").is_file():
            try:
                return "; ".join(verify(DataSet.read(data_dir)))
            except UserError as error:
                return str(error)
        known = (before, self.expected)
        return ", ".join(
            name
            for name, content in self.content().items()
            if not name.startswith("data/clozemill_in_progress/")
            and content not in [each.get(name) for each in known]
        )


@pytest.fixture
def killing(light, generate_flags, small_text, server, tmp_path):
    """A function that prepares the killing of a case."""

    def prepare(name):
        first, *others = generate_flags  # the input
        generate = ["generate", *others, "--output_dir={place}/data"]
        if "mixture" not in name:
            generate.append(first)
        text = str(small_text)
        commands = [
            [*generate, *(flag.replace("{text}", text) for flag in flags)] for flags in CASES[name]
        ]
        return KillingGenerate(light, server, commands, tmp_path)

    return prepare


def test_generate_killed_at_a_few_requests_resumes(killing, report):
    generate = killing("generate")
    generate.check("generate", generate.sample(POINTS_OF_FAST_TEST, "fast"), report)


@pytest.mark.slow
def test_generate_killed_at_any_of_its_first_requests_resumes(killing, report):
    generate = killing("generate")
    assert len(generate.requests) >= MOST_REQUESTS
    first = [(point, moment) for point in range(MOST_REQUESTS) for moment in MOMENTS]
    generate.check("generate", first, report)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_generate_killed_at_any_request_resumes(name, killing, report):
    generate = killing(name)
    generate.check(name, generate.sample(MOST_REQUESTS // 2, name), report)
