"""No test looks at a clock: a machine that does other work is slow, not wrong. Tests wait for events (`tests/waiting.py`), speed
belongs to `bench/`."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
CLOCK = re.compile(
    r"\btime\.(time|monotonic|perf_counter|process_time|sleep)\(|\b(perf_counter|monotonic|process_time|sleep)\("
    r"|timeout=\s*\d|\.(wait|join|result)\(\s*\d|seconds=\s*\d|deadline=(?!None)|implicitly_wait|set_page_load_timeout"
)
ALLOWED = {
    "waiting.py": "gives up what never comes",
    "test_no_clock.py": "names the words",
    "adapters/hostile.py": "says what bench/hostile.py prints",
    "features/test_store.py": "makes a file old",
}


def test_no_test_looks_at_a_clock() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{number}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.relative_to(TESTS).as_posix() not in ALLOWED
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if CLOCK.search(line)
    ]
    assert found == []
