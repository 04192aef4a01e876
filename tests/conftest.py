"""One line at the end says what skipped tests need."""

import re
from collections import Counter

MISSING_PACKAGE = re.compile(r"could not import '([\w.]+)'.*", re.DOTALL)


def pytest_terminal_summary(terminalreporter):
    # A report's `longrepr` is file, line and reason. A module skipped as a whole is one report.
    counts = Counter(
        MISSING_PACKAGE.sub(r"needs \1", report.longrepr[2].removeprefix("Skipped: "))
        for report in terminalreporter.stats.get("skipped", [])
    )
    if counts:
        parts = [
            f"{number} {reason if number == 1 else re.sub('^needs', 'need', reason)}"
            for reason, number in counts.most_common()
        ]
        terminalreporter.write_line(f"skipped: {', '.join(parts)}")
