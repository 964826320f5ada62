"""Progress: compilation is announced at once and counts in no rate; time left appears later."""

import io

import pytest

from prance_jax.training.progress import Progress


class Clock:
    """Seconds that pass only when a test adds them."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(progress, clock, steps, *, done=0, compilation=60.0, step_seconds=0.5, until=None):
    """A stage whose first step takes `compilation` seconds, every other one `step_seconds`."""
    progress.start("seed0/meta", steps, done)
    for step in range(done + 1, (until or steps) + 1):
        clock.seconds += compilation if step == done + 1 else step_seconds
        progress.update(step, {"loss": 1 / step})


@pytest.fixture
def clock():
    return Clock()


def test_compilation_is_announced_at_once(clock):
    stream = io.StringIO()
    Progress(stream=stream, clock=clock).start("seed0/meta", 1500)
    assert stream.getvalue() == "seed0/meta  compiling\n"


def test_a_finished_stage_compiles_nothing(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, clock=clock)
    progress.start("seed0/meta", 6, 6)
    progress.stop()
    assert stream.getvalue() == ""


def test_rate_and_time_left_are_those_of_the_steps_after_the_first(clock):
    """Two steps a second; a minute of compilation would make them one in a hundred seconds."""
    stream = io.StringIO()
    progress = Progress(stream=stream, every_seconds=0.0, clock=clock)
    train(progress, clock, 1500, until=61)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "seed0/meta  1/1500  loss 1"
    assert lines[61] == "seed0/meta  61/1500  2 steps/s  12:00 left  loss 0.01639"


def test_no_time_left_before_thirty_steps(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, every_seconds=0.0, clock=clock)
    train(progress, clock, 1500, until=40)
    with_rate = [number for number, line in enumerate(stream.getvalue().splitlines()) if "left" in line]
    assert with_rate == list(range(31, 41))


def test_a_resumed_stage_counts_its_own_steps_alone(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, every_seconds=0.0, clock=clock)
    train(progress, clock, 1500, done=1200, until=1231)
    lines = stream.getvalue().splitlines()
    assert "left" not in lines[-2] and lines[-1].startswith("seed0/meta  1231/1500  2 steps/s  2:14 left")


@pytest.mark.parametrize(
    "steps, expected",
    [
        (9, "9/9  2 steps/s  done in 1:04"),
        (1, "1/1  done in 1:00"),
        (7201, "7201/7201  2 steps/s  done in 1:01:00"),
    ],
)
def test_the_last_line_has_the_whole_time(clock, steps, expected):
    """Short stages, too: the rate needs no prediction any more."""
    stream = io.StringIO()
    progress = Progress(stream=stream, every_seconds=1e9, clock=clock)
    train(progress, clock, steps)
    progress.stop()
    first, last = stream.getvalue().splitlines()
    assert first == "seed0/meta  compiling" and last.startswith(f"seed0/meta  {expected}  loss ")


def test_plain_lines_keep_their_distance(clock):
    """Steps of half a second, a line every 10 seconds."""
    stream = io.StringIO()
    progress = Progress(stream=stream, clock=clock)
    train(progress, clock, 1500, compilation=5.0, until=101)
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert steps == ["compiling", "11/1500", "31/1500", "51/1500", "71/1500", "91/1500"]


def test_a_bar_says_the_same_behind_it(clock):
    stream = Terminal()
    progress = Progress(stream=stream, clock=clock)
    progress.start("seed0/meta", 50)
    assert "0/50" in stream.getvalue() and "compiling" in stream.getvalue()
    progress.stop()
    stream = Terminal()
    progress = Progress(stream=stream, clock=clock)
    train(progress, clock, 50)
    progress.stop()
    last = stream.getvalue().rstrip().split("\r")[-1]
    assert "50/50" in last and "2 steps/s  done in 1:24  loss 0.02" in last and "compiling" not in last


def test_notes_stand_between_lines(clock):
    stream = io.StringIO()
    progress = Progress(stream=stream, clock=clock)
    progress.note("searching")
    train(progress, clock, 3)
    assert stream.getvalue().splitlines()[:2] == ["searching", "seed0/meta  compiling"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_prints_nothing(clock, stream):
    progress = Progress(quiet=True, stream=stream, every_seconds=0.0, clock=clock)
    train(progress, clock, 40)
    progress.note("searching")
    progress.stop()
    assert stream.getvalue() == ""
