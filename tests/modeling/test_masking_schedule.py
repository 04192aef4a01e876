import copy
import json

import pytest

from modeling.masking_schedule import MaskingSchedule
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError, in_one_line

pytestmark = pytest.mark.no_backend


@pytest.mark.parametrize(
    ("text", "rates", "described"),
    [
        ("0.3", [0.3] * 5, "30% of the tokens"),
        ("0.3:0.1", [0.3, 0.25, 0.2, 0.15, 0.1], "30% of the tokens at first, 10% at the end"),
        ("0.1:0.3", [0.1, 0.15, 0.2, 0.25, 0.3], "10% of the tokens at first, 30% at the end"),
        ("0.3,0.15@2", [0.3, 0.3, 0.15, 0.15, 0.15], "30% of the tokens, 15% after step 2"),
        (
            "0.3,0.15@1,0.05@4",
            [0.3, 0.15, 0.15, 0.15, 0.05],
            "30% of the tokens, 15% after step 1, 5% after step 4",
        ),
        ("0.3,0.15@9", [0.3] * 5, "30% of the tokens, 15% after step 9"),
        ("3e-1", [0.3] * 5, "30% of the tokens"),
    ],
)
def test_the_share_at_each_step(text, rates, described):
    schedule = MaskingSchedule(text)
    assert [schedule.at(step, 5) for step in range(1, 6)] == pytest.approx(rates)
    assert schedule.largest == max(schedule.at(step, 10) for step in range(1, 11))
    assert schedule.describe() == described


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("0.30", "0.3"),
        ("3e-1:.150", "0.3:0.15"),
        ("0.30, 0.15@050,0.05@60", "0.3,0.15@50,0.05@60"),
    ],
)
def test_equal_schedules_have_one_spelling(text, spelt):
    schedule = MaskingSchedule(text)
    assert schedule == spelt
    assert copy.deepcopy(schedule).at(1, 9) == MaskingSchedule(spelt).at(1, 9)


def test_a_run_of_one_step_has_the_first_share():
    assert MaskingSchedule("0.3:0.15").at(1, 1) == 0.3


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "0", "1", "-0.1", "nan", "inf", "15%", "0.3@5", "0.3;0.1", "None", "0.3\n1"),
        *("0.3:", "0.3:0.2:0.1", "0.3:1", "0.3:0.15,0.1@50"),
        *("0.3,0.15", "0.3,0.15@", "0.3,@5", "0.3,0.15@0", "0.3,0.15@-5", "0.3,0.15@1.5"),
        *("0.3,0.2@50,0.1@20", "0.3,0.2@50,0.1@50"),
    ],
)
def test_what_is_no_schedule_is_named(text):
    with pytest.raises(UserError) as raised:
        TrainingOptions(masked_lm_prob=text)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"--masked_lm_prob={in_one_line(text)} must be a share between 0 and 1")


def test_it_is_its_own_text():
    options = TrainingOptions(masked_lm_prob="0.3:0.15")
    assert TrainingOptions().masked_lm_prob is None
    assert TrainingOptions(masked_lm_prob=0.3).masked_lm_prob == "0.3"
    assert json.loads(json.dumps(vars(options)))["masked_lm_prob"] == "0.3:0.15"
    assert copy.deepcopy(options.masked_lm_prob).at(1, 10) == 0.3
