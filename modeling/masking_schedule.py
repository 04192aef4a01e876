"""The share of tokens to mask, which may change while a model trains."""

from bisect import bisect_left
from math import inf

from pipeline.errors import UserError, in_one_line


class MaskingSchedule(str):
    """A schedule in its text form, such as a flag gives it, in one spelling.

    `0.3` is always 0.3. `0.3:0.15` falls linearly from 0.3 at the first step to 0.15 at the last.
    `0.3,0.15@50000` is 0.3, and 0.15 after step 50,000; more steps may follow.

    Attributes:
      largest: the largest share of all steps.

    Raises:
      UserError: the text is no schedule, or a share is not between 0 and 1.
    """

    largest: float
    _rates: list[float]
    _steps: list[int]
    _is_linear: bool

    def __new__(cls, text: str) -> "MaskingSchedule":
        """The schedule of a text, of which 0.3 and 0.30 are the same."""
        is_linear = ":" in text
        try:
            first, *later = text.split(",")
            rates, steps = [float(rate) for rate in first.split(":")], []
            for each in later:
                rate, _, step = each.partition("@")
                rates.append(float(rate))
                steps.append(int(step))
        except ValueError:
            rates, steps = [inf], []
        is_known_form = not is_linear or (len(rates) == 2 and not steps)
        is_in_order = [0, *steps] == sorted({0, *steps})
        if not (is_known_form and is_in_order and all(0 < rate < 1 for rate in rates)):
            raise UserError(
                f"--masked_lm_prob={in_one_line(text)} must be a share between 0 and 1, such as "
                "0.3, or shares: 0.3:0.15 falls linearly, 0.3,0.15@50000 falls after a step"
            )
        changes = [f",{rate}@{step}" for rate, step in zip(rates[1:], steps, strict=False)]
        spelt = ":".join(map(str, rates)) if is_linear else "".join([str(rates[0]), *changes])
        schedule = super().__new__(cls, spelt)
        schedule._rates, schedule._steps, schedule._is_linear = rates, steps, is_linear
        schedule.largest = max(rates)
        return schedule

    def at(self, step: int, num_train_steps: int) -> float:
        """The share at a step, from 1, of a run of so many steps."""
        if self._is_linear:
            first, last = self._rates
            return first + (last - first) * (step - 1) / max(num_train_steps - 1, 1)
        return self._rates[bisect_left(self._steps, step)]

    def describe(self) -> str:
        """The schedule for people."""
        first, *later = [f"{100 * rate:.3g}%" for rate in self._rates]
        if self._is_linear:
            return f"{first} of the tokens at first, {later[0]} at the end"
        changes = zip(later, self._steps, strict=True)
        return f"{first} of the tokens" + "".join(f", {x} after step {n:,}" for x, n in changes)
