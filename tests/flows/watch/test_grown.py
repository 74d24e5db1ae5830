"""The page of a run, on a real chain: what there is so far, and at the end the report itself."""

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.project import events, journal
from flows.project.journal import Journal, StageLine
from flows.watch.grown import Grown, so_far
from flows.watch.state import Eye
from tests import tiny_chain

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    with tiny_chain.in_this_process(tmp_path_factory.mktemp("grown")) as project:
        yield project


def test_stages_write_what_is_watched(chain):
    seen = {s.name: s for s in Eye(chain.root).look().stages}
    assert {"calibrate", "train@rf1", "couple@rf1", "evaluate@rf1"} <= seen.keys()
    assert [step for step, _ in seen["train@rf1"].curves["loss"]] == [10, 20, 30, 40]
    assert ("undecided", "held_out_ratio") in [
        (s, t.split()[0]) for s, t in seen["train@rf1"].gates
    ]


def test_the_page_at_the_end_is_the_report(chain):
    watched, report = chain.root / "watched.html", chain.root / "report.html"
    Journal(journal.path_of(chain.root), "gaussian", []).end({})
    done = CliRunner().invoke(app, ["watch", "--once", "--page", str(watched)])
    assert done.exit_code == 0 and f"written: {watched}" in done.stdout.replace("\n", "")
    done = CliRunner().invoke(app, ["compare", "--html", str(report)])
    assert done.exit_code == 0 and watched.read_text() == report.read_text()
    text = report.read_text()
    assert "What it cost" in text and "Losses of training" in text and 'class="points"' in text


def test_the_page_before_the_comparison_has_the_rounds_that_are_measured(chain):
    lock, whole = chain.root / "dvc.lock", (chain.root / "dvc.lock").read_text()
    (before,) = so_far(chain.root)
    run = Journal(journal.path_of(chain.root), "gaussian", [StageLine("compare")])
    run.stage("compare", "running", began=0.0)
    try:
        chain.edit("dvc.lock", "  compare:\n", "  compared:\n")
        (found,) = so_far(chain.root)
        assert found.found.as_dict() == before.found.as_dict()
        text = Grown(chain.root).html(Eye(chain.root).look())
        assert "The run" in text and "Rounds: energy by NFE" in text and "http-equiv" in text
        chain.edit("dvc.lock", "  evaluate@rf1:\n", "  evaluated@rf1:\n")
        assert so_far(chain.root) == []
        text = Grown(chain.root).html(Eye(chain.root).look())
        assert "The run" in text and "Rounds:" not in text
    finally:
        lock.write_text(whole)
        run.end({})


def test_results_of_other_settings_are_not_on_the_page(chain):
    try:
        chain.edit("params.yaml", "steps: 40", "steps: 41")
        assert so_far(chain.root) == []
    finally:
        chain.edit("params.yaml", "steps: 41", "steps: 40")


def test_a_training_shows_its_samples(chain, monkeypatch):
    from flows.stage.__main__ import main
    from fmcore.measure import preview

    monkeypatch.setattr(preview, "SHARE", 1e9)
    try:
        chain.edit("params.yaml", "steps: 40", "steps: 60")
        words = "train rf1 coupling=couplings/independent init=models/scratch out=models/rf1"
        more = "curve=curves/train/rf1.csv metrics=metrics/train/rf1.json"
        assert main([*words.split(), *more.split()]) == 0
    finally:
        chain.edit("params.yaml", "steps: 60", "steps: 40")
    file = events.preview_of(events.path_of(chain.root, "train@rf1"))
    assert file.is_file()
    assert "preview" not in "".join(p.name for p in (chain.root / "models").rglob("*"))
    text = Grown(chain.root).html(Eye(chain.root).look())
    assert "Samples of rf1 at step 60, each time from the same noise" in text
