"""Where a run comes from: what the stages rewrite is no change of what runs."""

from flows.tracking.origin import origin

LOCK = """
schema: '2.0'
stages:
  train@rf1:
    cmd: python src/train.py rf1 independent
    outs:
    - {path: metrics/rf1.json, hash: md5, md5: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, size: 1}
"""


def test_a_run_that_rewrites_its_metrics_and_lock_is_not_dirty_and_an_edit_is(project):
    assert "mlflow.source.git.commit" not in origin(project.root), "no commit yet"
    project.write("dvc.lock", LOCK)
    project.write("metrics/rf1.json", "1")
    project.write("fmcore/a.py", "1")
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "start")
    assert origin(project.root)["git.dirty"] == "false"
    project.write("metrics/rf1.json", "2")
    project.write("dvc.lock", LOCK.replace("aaaa", "bbbb"))
    found = origin(project.root)
    assert found["git.dirty"] == "false"
    assert found["mlflow.source.name"] == project.root.name and found["mlflow.user"]
    project.write("fmcore/a.py", "2")
    assert origin(project.root)["git.dirty"] == "true"
