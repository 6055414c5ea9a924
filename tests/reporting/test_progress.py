import contextlib
import io
import math

import pytest

from cnn_jax.reporting import Progress, print_table, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_at_intervals(clock):
    file = io.StringIO()
    with Progress(10, unit_images=100, every=4, file=file) as bar:
        for step in range(1, 11):
            bar.update(step, {"loss": 1 / step})
            clock.now += 0.5
        bar.line("epoch 1: [done] 100%")
    assert file.getvalue().splitlines() == [
        "training 4/10  loss 0.2500  200 images/s  0:03 left",
        "training 8/10  loss 0.1250  200 images/s  0:01 left",
        "training 10/10  loss 0.1000  200 images/s  0:00 left",
        "epoch 1: [done] 100%",
    ]


def test_speed_is_that_of_the_last_half_minute(clock):
    bar = Progress(1000, start=500, file=io.StringIO())
    assert math.isnan(bar.rate)
    bar.update(501)  # after a long compilation
    assert math.isnan(bar.rate)
    for _ in range(40):
        clock.now += 1
        bar.update(bar.step + 1)
    for _ in range(31):
        clock.now += 1
        bar.update(bar.step + 3)
    assert bar.rate == pytest.approx(3)


def test_about_twenty_lines_however_the_steps_come():
    for stride in (1, 7, 100):
        file = io.StringIO()
        with Progress(1000, file=file) as bar:
            for step in range(stride, 1000, stride):
                bar.update(step)
            bar.update(1000)
        lines = file.getvalue().splitlines()
        assert 10 <= len(lines) <= 21
        assert lines[-1].startswith("training 1,000/1,000")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_bar_in_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    file = Terminal()
    with contextlib.suppress(KeyboardInterrupt), Progress(2, unit_images=8, file=file) as bar:
        bar.update(1, {"loss": 0.5})
        bar.line("above [the] bar")
        bar.update(2, {"loss": 0.25})
        raise KeyboardInterrupt
    text = file.getvalue()
    assert "above [the] bar\n" in text
    assert "━" in text
    assert "loss 0.2500" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_an_ascii_file_gets_what_it_can_show():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with Progress(1, file=file) as bar:
        bar.line("4 → 9")
    assert file.buffer.getvalue() == b"4 ? 9\n"


def test_a_table_is_as_wide_as_it_needs():
    file = io.StringIO()
    print_table("Layers [all]", ["layer", "parameters"], [["conv" * 40, 320], ["fc1", 401536]], file=file)
    lines = file.getvalue().splitlines()
    assert lines[0] == "Layers [all]"
    assert lines[-1].split() == ["fc1", "401,536"]
    assert lines[-2].endswith("    320")
    assert "conv" * 40 in lines[-2]
    print_table("Empty", ["a", "b"], [], file=file)
