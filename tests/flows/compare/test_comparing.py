"""What answers "which round do I ship": MLflow's registry, comparisons across chains, the page."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.real_chain import Chain

pytestmark = pytest.mark.slow
OWN = ("file:", "data:")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def chain(finished):
    root = finished.parent / "comparing"
    shutil.copytree(finished, root, symlinks=True)
    return Chain(root)


def table(chain):
    return json.loads(chain.reflow("compare", "--json").stdout)


@pytest.mark.long
def test_aliases_follow_what_the_comparison_says_to_ship(chain):
    code = (
        "import json; m = t.client.search_registered_models()[0];"
        "v = {a: t.client.get_model_version_by_alias(m.name, a) for a in m.aliases};"
        "print(json.dumps([m.name, {a: x.tags['reflow.round'] for a, x in v.items()}]))"
    )
    name, found = json.loads(chain.mlflow(code))
    ship = table(chain)["ship"]
    assert name.startswith("reflow-gaussian-")
    assert found == {use: choice["round"] for use, choice in ship.items()}
    assert {"one_step", "best"} <= set(found)
    done = chain.reflow("ship", "rf1", "--as", "one_step")
    assert done.stdout.startswith(f"models:/{name}@one_step is version")
    assert ": 0 logged" in chain.reflow("publish").stdout
    assert json.loads(chain.mlflow(code))[1] == {**found, "one_step": "rf1"}
    chain.reflow("ship", "--rule", "--as", "one_step")
    assert json.loads(chain.mlflow(code))[1] == found


@pytest.mark.long
def test_the_alias_gives_the_samples_of_reflow_sample(chain):
    code = (
        "import mlflow, json; m = t.client.search_registered_models()[0].name;"
        "f = mlflow.pyfunc.load_model(f'models:/{m}@one_step');"
        "import numpy as np; none = np.zeros((0, 2), np.float32);"
        "p = {'seed': 5, 'count': 32, 'nfe': 1};"
        "print(json.dumps(f.predict({'noise': none}, params=p).tolist()))"
    )
    served = np.array(json.loads(chain.mlflow(code).splitlines()[-1]))
    round_ = table(chain)["ship"]["one_step"]["round"]
    chain.reflow("sample", round_, "s.npy", "--nfe", "1", "-n", "32", "--seed", "5")
    np.testing.assert_allclose(served, np.load(chain.root / "s.npy"), atol=1e-5)


def test_no_model_in_mlflow_is_a_pickle(chain):
    files = [p.name for p in (chain.root / ".reflow" / "mlflow").rglob("*") if p.is_file()]
    assert any(name.endswith(".safetensors") for name in files)
    assert not [n for n in files if n.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


def test_gates_and_advice_are_on_the_chains_run(chain):
    code = (
        "import json; r = t.find(reflow__kind='chain')[0];"
        "print(json.dumps([r.data.tags, r.data.metrics]))"
    )
    tags, metrics = json.loads(chain.mlflow(code))
    assert tags["reflow.gates"]
    ship = table(chain)["ship"]
    for use, choice in ship.items():
        assert tags[f"reflow.{use}"] == choice["round"]
    assert any(name.startswith("round/spent/") for name in metrics)


@pytest.mark.long
def test_revisions_and_seeds_are_compared_with_mean_and_spread(chain):
    def rows():
        chain.reflow("compare", "--rev", "first", "--rev", "HEAD", "--csv", "both.csv")
        return pd.read_csv(chain.root / "both.csv")["seeds"].tolist()

    chain.sh("git", "tag", "-f", "first")
    chain.edit("params.yaml", "seed: 0", "seed: 1")
    chain.reflow("run", "--no-prefect", "--no-mlflow")
    chain.commit("another seed, and its own yardstick")
    assert rows() == [1, 1, 1, 1]
    for old in ("samples: 4000", "splits: 2", "trajectories: 500"):
        chain.edit("params.yaml", old, f"{old}, seed: 0")
    chain.reflow("run", "--no-prefect", "--no-mlflow")
    chain.commit("another seed")
    shown = chain.reflow("compare", "--rev", "first", "--rev", "HEAD", "--csv", "both.csv")
    frame = pd.read_csv(chain.root / "both.csv")
    assert sorted(frame["round"]) == ["rf1", "rf2"]
    assert frame["seeds"].tolist() == [2, 2]
    assert "±" in shown.stdout
    wrong = chain.reflow("compare", "--rev", "nowhere", check=False)
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr


class Page(HTMLParser):
    """The links and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in {"src", "href"} and v]


@pytest.fixture(scope="module")
def page(chain):
    chain.reflow("compare", "--html", "report.html")
    return chain.root / "report.html"


def test_the_page_needs_nothing_but_itself(page):
    text = page.read_text()
    found = Page(text)
    pictures = [s for s in found.sources if s.startswith("data:image/")]
    assert len(pictures) >= 2  # trajectories of two rounds
    assert text.count('class="points"') == 2 * 3 + 1  # samples at three NFE, real data
    assert all(s.startswith(("data:", "#")) for s in found.sources)
    assert "svg" in found.tags and "script" not in found.tags
    assert not re.findall(r"url\((?!['\"]?(?:data:|#))", text)
    for round_ in ("rf1", "rf2"):
        assert f">{round_}<" in text
    for picture in pictures:
        assert base64.b64decode(picture.split(",", 1)[1])[:4] in (b"\x89PNG", b"<svg")


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
@pytest.mark.parametrize("width", [1366, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(page, width, scheme):
    from playwright.sync_api import sync_playwright

    shots = Path(__file__).resolve().parents[3] / ".reflow" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    problems = []
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda asked: asked.url[:5] in OWN or problems.append(asked.url))
        tab.goto(page.as_uri())
        wide = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        broken = tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
        tab.screenshot(path=shots / f"report_{scheme}_{width}.png", full_page=True)
        cut = tab.evaluate("document.querySelector('.scroll').scrollWidth - innerWidth")
        tab.click(".zoom .tap")
        large = tab.evaluate("document.querySelector('.zoom:target').clientWidth")
        tab.click(".zoom:target .close")
        shut = tab.evaluate("document.querySelector('.zoom:target') === null")
        browser.close()
    assert not problems
    assert wide <= 0 and broken == 0
    assert large >= width - 20 and shut
    assert width < 1000 or cut < 0  # the table of rounds is whole
    level = sum(int(v) for v in re.findall(r"\d+", ground)[:3])
    assert level > 600 if scheme == "light" else level < 200


def test_a_name_that_is_no_page_is_refused(chain):
    done = chain.reflow("compare", "--html", "report.txt", check=False)
    assert done.returncode == 2 and "expected a name that ends in .html" in done.stderr
