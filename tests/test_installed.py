"""`pip install reflow-chain`: a wheel with all it needs, beside strangers' `flows` and `fmcore`."""

import json
import subprocess
import tarfile
import zipfile
from contextlib import contextmanager

import pytest

from flows.dag import inputs
from flows.start import templates
from tests import installed, servers
from tests.conftest import SOURCE
from tests.installed import Environment, Installed

pytestmark = pytest.mark.slow
SMALL = {
    "samples: 8000": "samples: 1200", "samples: 2000": "samples: 300", "splits: 8": "splits: 2",
    "nfe: [1, 2, 4, 8, 32]": "nfe: [1, 4]", "{name: heun, steps: 32}": "{name: heun, steps: 8}",
    "  likelihood: {samples: 256}\n": "", "width: 64": "width: 32", "steps: 1500": "steps: 300",
    "steps: 800": "steps: 100", "pairs: 10000": "pairs: 1500",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("installed")


@pytest.fixture(scope="module")
def wheel(folder):
    return installed.built(folder, "wheel")


@pytest.fixture(scope="module")
def place(folder, wheel):
    strangers = [installed.stranger(folder, name) for name in ("flows", "fmcore")]
    return Environment(folder / "environment", wheel, *strangers)


@pytest.fixture(scope="module")
def chain(folder, place):
    """A project that `reflow init` made and `reflow run` ran, beside strangers' packages."""
    outside = Installed(folder, place)
    said = outside.sh("reflow", "init", "my-flows", "--from", "eight_gaussians").stdout
    assert "next: cd my-flows && reflow run" in said
    made = Installed(folder / "my-flows", place)
    for old, new in SMALL.items():
        made.edit("params.yaml", old, new)
    made.commit("smaller")
    made.write(".reflow/run.log", made.reflow("run").stdout)
    made.commit("two rounds")
    return made


def tracked(*folders):
    words = ["git", "ls-files", "-co", "--exclude-standard", *folders]
    found = subprocess.run(words, cwd=SOURCE, capture_output=True, text=True, check=True).stdout
    return {name for name in found.splitlines() if (SOURCE / name).is_file()}


def test_a_wheel_has_every_file_and_no_name_of_a_stranger_at_its_top(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"reflow_chain", "reflow_chain.pth"}
    code = {n for n in tracked("flows", "fmcore") if not n.startswith("flows/installed/")}
    assert {f"reflow_chain/code/{name}" for name in code} < names
    pages = {name for name in tracked("docs") if name.endswith(".md")}
    assert {f"reflow_chain/code/{name}" for name in pages} < names  # what messages refer to
    assert {"flows/compare/page.html", "flows/py.typed", "fmcore/py.typed"} < code
    kept = {*templates.kept(), *templates.ONCE, *tracked("params")}
    plain = {"/".join(part.removeprefix(".") for part in name.split("/")) for name in kept}
    files = {name for name in names if name.startswith("reflow_chain/project/")}
    assert files == {f"reflow_chain/project/{name}" for name in plain}


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_clone(folder, wheel):
    with tarfile.open(installed.built(folder, "sdist")) as opened:
        opened.extractall(folder / "unpacked")
    (source,) = (folder / "unpacked").iterdir()
    again = installed.built(folder / "again", "wheel", source)
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_without_strangers_every_python_of_the_environment_has_our_code(folder, wheel):
    clean = Environment(folder / "clean", wheel)
    ask = "import flows.stage, fmcore; print(*flows.__path__, *fmcore.__path__, sep='\\n')"
    said = Installed(folder, clean).sh("python", "-c", ask).stdout.splitlines()
    assert said == [str(clean.site / "reflow_chain" / "code" / n) for n in ("flows", "fmcore")]


def test_a_copy_of_the_code_that_pythonpath_names_wins(folder, place):
    outside = Installed(folder, place)
    ask = "import reflow_chain, flows, fmcore; print(*flows.__path__, *fmcore.__path__)"
    code = place.site / "reflow_chain" / "code"
    for given, wanted in (("", code), (str(folder), code), (f"{folder}:{SOURCE}", SOURCE)):
        said = outside.sh("env", f"PYTHONPATH={given}", "python", "-c", ask).stdout.strip()
        assert said == f"{wanted / 'flows'} {wanted / 'fmcore'}"


def test_a_project_of_its_own_runs_beside_strangers_packages(chain, place):
    for name in ("flows", "fmcore"):
        assert [file.name for file in (place.site / name).glob("*.py")] == ["__init__.py"]
        assert "stranger" in (place.site / name / "__init__.py").read_text()
    assert set(chain.plan().values()) == {"unchanged"}
    rounds = json.loads(chain.reflow("compare", "--json").stdout)
    assert "rf2" in json.dumps(rounds)
    said = chain.reflow("publish").stdout
    assert "0 not published" in said
    assert (chain.root / "comparison" / "rounds.md").is_file()
    chain.reflow("compare", "--html", "page.html")
    assert "<html" in (chain.root / "page.html").read_text()
    (chain.root / "page.html").unlink()


def test_installed_code_has_the_meaning_of_the_clones(chain):
    for path, text in inputs.compute(chain.root).items():  # by the code of this process
        assert (chain.root / path).read_text() == text, path


def test_doctor_names_the_strangers_and_its_cure_works(chain, place):
    said = chain.reflow("doctor").stdout.replace("\n", " ")
    assert f"code: {place.site}/reflow_chain/code" in said
    assert "a plain `dvc repro` imports a stranger's" in said and "pip uninstall fmcore" in said
    plain = chain.sh("python", "-m", "dvc", "repro", check=False)
    assert plain.returncode and "the flows of a stranger" in plain.stderr
    cured = chain.sh("bash", "-c", 'eval "$(reflow env)" && python -m dvc repro')
    assert "didn't change, skipping" in cured.stdout
    assert "Running stage 'train" not in cured.stdout


def test_a_model_that_was_published_samples_where_strangers_packages_are(chain):
    code = (
        "import mlflow, numpy as np;"
        "client = mlflow.MlflowClient(); (model,) = client.search_registered_models();"
        "flow = mlflow.pyfunc.load_model(f'models:/{model.name}@best');"
        "print(flow.predict(np.zeros((0, 1)), params={'count': 5}).shape)"
    )
    env = chain.reflow("env").stdout.splitlines()
    known = [line.removeprefix("export ").replace("'", "") for line in env if "MLFLOW" in line]
    said = chain.sh("env", *known, "python", "-W", "ignore", "-c", code)
    assert said.stdout.strip() == "(5, 2)", said.stderr


@pytest.fixture(scope="module")
def ui(chain):
    with servers.running(chain) as ui:
        yield ui


@contextmanager
def deployed(ui, name, *words):
    """Serve a deployment from the installed command; give it as the server knows it."""
    process = ui.start(f"{name}.log", "reflow", "deploy", "--name", name, *words)
    try:

        def there():
            assert process.poll() is None, (ui.chain.root.parent / f"{name}.log").read_text()
            found = ui.ask("/deployments/filter", {})
            return next((d for d in found if d["name"] == name), None)

        yield servers.wait_for(there)
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.servers
def test_a_served_deployment_runs_the_installed_code(ui, chain):
    with deployed(ui, "chain", "--order", '{"seed": 1}') as found:
        assert found["entrypoint"] == "flows.deploy.flow.scheduled"
        run = ui.order(found["id"], {"overrides": {"rounds.rf2.train.steps": 50}}, "served")
        assert ui.ended(run) == "COMPLETED", "\n".join(ui.logs(run))
        assert set(ui.tasks(run)) >= {"train@rf2", "compare"}
    pool = chain.reflow("deploy", "--name", "nightly", "--pool", "gpus").stdout
    assert "deployed reflow-chain/nightly" in pool
    branch = f"reflow/served-{run[:8]}"
    assert "steps: 50" in chain.sh("git", "show", f"{branch}:params.yaml").stdout


@pytest.mark.servers
def test_cron_starts_a_run_of_the_installed_code(ui, chain):
    order = '{"overrides": {"rounds.rf2.train.steps": 40}}'
    with deployed(ui, "minutely", "--cron", "* * * * *", "--order", order) as found:
        which = {"deployments": {"id": {"any_": [found["id"]]}}}

        def done():
            runs = ui.ask("/flow_runs/filter", which)
            return next((r for r in runs if r["state_type"] in ("COMPLETED", "FAILED")), None)

        run = servers.wait_for(done, 300, 2)
        assert run["state_type"] == "COMPLETED", "\n".join(ui.logs(run["id"]))
        assert run["auto_scheduled"] and run["expected_start_time"][17:19] == "00"
        assert set(ui.tasks(run["id"])) >= {"train@rf2", "compare"}
    branch = f"reflow/{run['name']}-{run['id'][:8]}"
    assert "steps: 40" in chain.sh("git", "show", f"{branch}:params.yaml").stdout
