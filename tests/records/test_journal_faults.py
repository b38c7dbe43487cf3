"""What a full disk or a killed worker may leave of the journal."""

from pathlib import Path

import tiny_sweep

from harness.sweep import plan, queue
from harness.sweep.config import read_sweep


def test_a_torn_last_line_of_the_journal_is_dropped_and_work_goes_on(tmp_path: Path) -> None:
    spec = read_sweep(tiny_sweep.write_sweep(tmp_path))
    opened = queue.open_sweep(spec, tmp_path / "runs")
    plan.top_up(opened)
    journal = opened.folder / "study.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"worker')

    reopened = queue.open_sweep(spec, tmp_path / "runs")
    claim = queue.claim(reopened, "somebody")
    assert claim is not None
    assert claim.trial.number == 0
    again = plan.count(queue.open_sweep(spec, tmp_path / "runs"))
    assert (again["tune"].total, again["tune"].running) == (4, 1)
    assert journal.read_bytes().startswith(whole)
    assert all(line.endswith(b"}") for line in journal.read_bytes().splitlines())
