"""What a user sees of a running loop."""

import sys

import pytest

from semires import progress


@pytest.mark.parametrize("stage", [None, "mutual@a-1"])
def test_lines(capsys, monkeypatch, stage):
    """A line every interval and at the end, each complete; nothing at the start."""
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    if stage:
        monkeypatch.setenv("DVC_STAGE", stage)
    with progress.progress(name="a/1/cpi-u", total=4, unit="step", initial=1) as bar:
        assert capsys.readouterr().err == ""
        for value in (2, 3, 4):
            bar.update()
            bar.set_postfix_str(f"val oIoU {value}", refresh=False)
    name = stage or "a/1/cpi-u"
    assert capsys.readouterr().err.splitlines() == [
        f"{name}: step 2 of 4, 0 s left",
        f"{name}: step 3 of 4, 0 s left, val oIoU 2",
        f"{name}: step 4 of 4, 0 s in all, val oIoU 4",
    ]


def test_a_short_loop_a_stopped_one_and_another_process_write_nothing(capsys, monkeypatch):
    assert list(progress.progress(iter("abc"), name="images", total=3, unit="image")) == [*"abc"]
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    with progress.progress(name="x", total=3, unit="step") as bar:
        bar.update()
        assert capsys.readouterr().err == "x: step 1 of 3, 0 s left\n"
    with progress.progress(name="x", total=1, unit="step", shown=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_unless_lanes_share_it(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for wanted, bars in (("", True), ("lines", False)):
        monkeypatch.setenv("SEMIRES_PROGRESS", wanted)
        monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
        with progress.progress(name="x", total=2, unit="step") as bar:
            bar.update(2)
        assert ("\r" in capsys.readouterr().err) is bars


def test_time_is_read_easily():
    assert [progress.clock(s) for s in (7.4, 99, 100, 725)] == ["7 s", "99 s", "2 min", "12 min"]
