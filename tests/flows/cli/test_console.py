"""Errors of files are one line, as errors of settings are; what is no file's is not hidden."""

import errno
import os

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.console import one_line_errors
from flows.cli.main import app
from tests.conftest import SOURCE


@pytest.mark.parametrize("words", [["plan"], ["compare"], ["verify"]], ids=lambda words: words[0])
def test_a_project_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch, words):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((SOURCE / name).read_text())
    (tmp_path / ".reflow").write_text("")  # nothing can be made below a file, not even by root
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"),
            "error: /a/b: Permission denied",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "error: No space left on device"),
    ],
    ids=str,
)
def test_errors_of_files_are_one_line(error, said, capsys):
    with pytest.raises(typer.Exit), one_line_errors():
        raise error
    assert capsys.readouterr().err.startswith(said)


def test_an_error_without_a_file_stays_one_of_the_program():
    with pytest.raises(BrokenPipeError), one_line_errors():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
