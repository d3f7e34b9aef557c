"""How long a run will take: from earlier runs, from another run, or from a timed step; and what is said of it."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from builders import ROOT
from builders.plans import make_plan, write

from essence_kd.plan.forecast import about, forecast, read_stages

STAGES = json.loads((ROOT / "recipes" / "mini" / "seconds.json").read_text())["tiny"]["stages"]
STEP = json.loads((ROOT / "recipes" / "mini" / "seconds.json").read_text())["tiny"]["step"]


@pytest.fixture
def run(tmp_path):
    """A function that forecasts stages of a run of mini, tiny; ``run.note`` writes lines of its stages.jsonl."""
    plan = write(make_plan(tmp_path / "exp" / "mini_tiny", size="tiny"))
    os.utime(tmp_path / "exp" / "mini_tiny" / "plan.json", (1000, 1000))

    def ask(first=0, last=10, cores=2, force=False, step=None, plan=plan):
        def unasked():
            raise AssertionError("nothing is to be timed")

        return forecast(plan, ROOT, first, last, cores, force=force, step=step or unasked)

    def note(*rows, name="mini_tiny"):
        path = tmp_path / "exp" / name / "stages.jsonl"
        with path.open("a") as stream:
            for stage, seconds, ended, *unfinished in rows:
                row = {"stage": stage, "seconds": seconds, "ended": ended, **dict.fromkeys(unfinished, True)}
                stream.write(json.dumps(row) + "\n")

    ask.note, ask.plan = note, plan
    return ask


def test_a_first_run_is_scaled_by_a_training_step_that_is_timed_here(run):
    told, seconds = run(step=lambda: 2 * STEP)
    total = 2 * sum(STAGES)
    assert [seconds[stage] for stage in range(11)] == pytest.approx([2 * value for value in STAGES])
    assert told.startswith(f"roughly {about(total)} ({about(total / 1.5)} to {about(total * 1.5)}): it took ")
    assert f"where a step of training takes {1000 * STEP:.0f} ms; here one takes {2000 * STEP:.0f}" in told
    four = run(cores=4, step=lambda: STEP)[1]  # two students train side by side, and no more
    assert four[8] == STAGES[8] and four[5] == STAGES[5] / 2 and four[2] == STAGES[2] / 2
    assert run(cores=1, step=lambda: STEP)[1][8] == 2 * STAGES[8]


def test_a_short_first_run_is_not_worth_timing(run):
    assert run(last=1)[0] == "roughly 10 s (10 s to 10 s): it took 10 s on two other cores"


def test_stages_take_as_long_as_before(run):
    run.note(*((stage, 10 * stage, 900) for stage in range(11)), (8, 3, 950))  # a part of stage 8 was made anew
    told, seconds = run()
    assert told.startswith("at most about 9 min, as long as these stages took before in /")
    assert told.endswith("what is up to date is skipped") and seconds == {n: 10 * n for n in range(11)}
    assert run(first=7, force=True)[0].endswith("exp/mini_tiny") and "about 6 min" in run(first=7)[0]


def test_what_has_ended_since_the_plan_was_written_is_done(run):
    run.note(*((stage, 60, 2000) for stage in range(5)), (5, 100, 2100, "unfinished"))
    told, seconds = run(step=None)  # the stages that are done tell the speed: nothing is timed
    factor = 300 / sum(STAGES[:5])
    assert seconds == {stage: pytest.approx(factor * STAGES[stage]) for stage in range(5, 11)}
    assert "by what stages took in" in told
    run.note((5, 80, 2200), *((stage, 60, 2300) for stage in range(6, 11)))
    assert run() == ("seconds, if nothing has changed since the last run; all anew took 13 min", {})
    assert read_stages(Path(run.plan.exp) / "stages.jsonl").seconds[5] == 180
    assert run(force=True)[0].startswith("at most about 13 min")


def test_the_run_of_another_size_tells_how_fast_the_machine_is(run, tmp_path):
    other = write(make_plan(tmp_path / "exp" / "mini", size="default"))
    run.note(*((stage, 3 * value, 900) for stage, value in enumerate(STAGES)))
    default = json.loads((ROOT / "recipes" / "mini" / "seconds.json").read_text())["default"]["stages"]
    told, seconds = run(plan=other)
    assert [seconds[stage] for stage in range(11)] == pytest.approx([3 * value for value in default])
    assert told.endswith(f"by what stages took in {tmp_path / 'exp' / 'mini_tiny'}")


def test_a_corpus_that_nobody_has_timed(tmp_path):
    plan = write(make_plan(tmp_path / "exp" / "mine", corpus="mine"))
    told, seconds = forecast(plan, ROOT, 0, 10, 2, force=False, step=lambda: 1.0)
    assert told.startswith("how long it takes is not known before a first run of mine (") and seconds == {}
    (tmp_path / "exp" / "mine" / "stages.jsonl").write_text("spoilt\n")
    assert forecast(plan, ROOT, 0, 10, 2, force=False, step=lambda: 1.0)[0] == told


@pytest.mark.parametrize("seconds, text", [(3, "10 s"), (44, "40 s"), (89, "90 s"), (100, "2 min"), (1140, "19 min"),
                                           (9000, "2.5 h")])
def test_times_as_a_human_says_them(seconds, text):
    assert about(seconds) == text


def test_a_step_is_timed():
    from essence_kd.am.bench import step_seconds

    assert 0.001 < step_seconds(2) < 10
