"""Mending leaves alone what a stage is making: it is not yet what dvc.lock records."""

import json

from flows.dag.outputs import mend


def test_an_output_that_is_being_made_is_left_as_it_is(project):
    project.repro("prepare")
    out, lines = project.root / "couplings" / "independent", list[str]()
    (out / "a").unlink()  # the cache may share its bytes
    (out / "a").write_text("new")
    held = {"write": {str(out): {"pid": 1, "cmd": "dvc repro prepare"}}, "read": {}}
    lock = project.root / ".dvc" / "tmp" / "rwlock"  # as DVC has it while the stage runs
    lock.write_text(json.dumps(held))
    done = mend.mend(project.root, None, lines.append)
    assert not done.restored and not done.remake and (out / "a").read_text() == "new"
    assert lines == ["couplings/independent: prepare is making it now, so it is left as it is"]
    lock.unlink()
    done = mend.mend(project.root, None, lines.append)
    assert done.restored == ["couplings/independent"] and (out / "a").read_text() == "1\n"
