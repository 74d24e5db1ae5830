"""`reflow push-hub` and `pull-hub` against a hub on loopback: whole or not at all, in one line."""

import hashlib
import json
import re
import shutil
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows.cli.main import app
from flows.compare.chains import workspace_chain
from flows.compare.data_card import Made, data_card
from flows.dag import graph
from flows.stage.__main__ import main
from fmcore.checked import sealed
from fmcore.coupling.manifest import MANIFEST, POINTER
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import adopt, finish, shard_name
from fmcore.network.store import load
from tests import hub as fake
from tests import tiny_chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    with tiny_chain.in_this_process(tmp_path_factory.mktemp("hub")) as project:
        yield project


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with fake.serving() as serving:
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        monkeypatch.setenv("HF_TOKEN", fake.WRITE)
        for name, value in {
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():  # read from the environment when the package was imported
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield serving


def reflow(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def push(what, repo, *words):
    code, said = reflow("push-hub", what, "--repo", repo, *words)
    assert code == 0, said
    return said


def pull(repo, to, *words):
    code, said = reflow("pull-hub", repo, "--to", to, *words)
    assert code == 0, said
    return said


def contents(folder):
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def test_a_coupling_goes_up_in_one_commit_and_comes_down_with_its_bytes(chain, hub, tmp_path):
    said = push("couplings/rf1", "lab/pairs")
    repo = hub.repos["dataset", "lab/pairs"]
    assert len(repo.commits) == 2 and not repo.private  # that of the new repository, and ours
    assert len(hub.objects) == 3  # the shards went as LFS objects
    down = tmp_path / "down"
    said = pull("lab/pairs", down)
    assert contents(down / "pairs") == contents(chain.root / "couplings/rf1")
    commit = repo.branches["main"]
    assert commit in said and f"import: {{kind: reflow, path: {down}/pairs}}" in said
    assert json.loads((down / "pulled.json").read_text())["commit"] == commit
    code, said = reflow("verify", down / "pairs")
    assert code == 0 and "whole; 100 pairs" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["down"]  # no folder that was on the way


def test_the_cards_numbers_are_those_of_the_metrics(chain, hub):
    push("couplings/rf1", "lab/pairs", "--licence", "cc-by-4.0")
    text = hub.repos["dataset", "lab/pairs"].head["README.md"].decode()
    metrics = json.loads((chain.root / "metrics/couple/rf1.json").read_text())
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    shown = {row[0].removeprefix("| "): row[1].removesuffix(" |") for row in rows}
    for name in ("noise_z", "noise_repeats", "endpoint_shift", "solver_gap_rel", "transport_cost"):
        assert float(shown[name]) == pytest.approx(metrics[name], rel=1e-5), name
    about = open_coupling(chain.root / "couplings/rf1").about
    assert shown["digest of its model"] == about.model == load(chain.root / "models/rf1").digest
    assert json.loads(shown["solver"]) == about.solver and int(shown["noise seed"]) == about.seed
    assert int(shown["NFE"]) == metrics["nfe"] and int(shown["pairs"]) == 100
    front = YAML(typ="safe").load(text.split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    found = json.loads((chain.root / "comparison/rounds.json").read_text())
    row = next(line for line in text.splitlines() if line.startswith("| rf1 | 2."))
    assert float(row.split(" | ")[1].split(" ±")[0]) == pytest.approx(
        found["rounds"][0]["energy"]["1"], rel=0.02
    )
    assert found["fingerprint"] in text and "Lineage" in text and "arXiv:2209.03003" in text


@pytest.mark.filterwarnings("ignore")  # of datasets and what it imports
def test_datasets_and_pandas_open_what_came_down(chain, hub, tmp_path, monkeypatch):
    import datasets
    import pandas as pd

    push("couplings/rf1", "lab/pairs")
    down = tmp_path / "down"
    pull("lab/pairs", down)
    text = (down / "README.md").read_text()
    pairs = read(open_coupling(chain.root / "couplings/rf1"))
    frame = pd.read_parquet(down / "pairs")
    assert torch.equal(torch.tensor(frame["target"].tolist()), pairs.target)
    kept = {"cache_dir": str(tmp_path / "cache"), "split": "train"}
    files = str(down / "pairs/*.parquet")
    named = datasets.load_dataset("parquet", data_files=files, **kept)
    by_card = datasets.load_dataset(str(down), **kept)  # finds the files by the front matter
    for rows in (named.with_format("torch"), by_card.with_format("torch")):
        assert len(rows) == 100 and torch.equal(rows["source"][:], pairs.source)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(down))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for block in re.findall(r"```python\n(.*?)```", text, re.S):  # as they stand in the card
        names: dict = {}
        exec(block.replace('load_dataset("lab/pairs"', f'load_dataset("{down}"'), names)
        trained = pairs.target[~pairs.held_out][: len(names["target"])]
        assert torch.equal(torch.from_numpy(names["target"].copy()), trained) and len(trained) > 60


def test_a_model_comes_down_and_both_are_taken_into_a_chain(chain, hub):
    push("models/rf1", "lab/rf1", "--private")
    push("couplings/rf1", "lab/pairs")
    assert hub.repos["model", "lab/rf1"].private
    said = pull("lab/rf1", "down-model")
    assert "model: {kind: reflow, path: down-model}" in said
    pull("lab/pairs", "down-pairs")
    model = contents(chain.root / "models/rf1")
    assert model.items() < contents(chain.root / "down-model").items()
    assert "rf1, a rectified flow of gaussian" in (chain.root / "down-model/README.md").read_text()
    params = (chain.root / "params.yaml").read_text()
    entry = "{coupling: independent, init: scratch, model: {kind: reflow, path: down-model}}"
    more = params.replace("couplings:\n", f"  pulled: {entry}\ncouplings:\n")
    more += "  again: {round: scratch, import: {kind: reflow, path: down-pairs/pairs}}\n"
    try:
        chain.write("params.yaml", more)
        stages = graph.read(chain.root)
        for name in ("inputs", "train@pulled", "couple@again"):
            words = stages[name].cmd.removeprefix("python -m flows.stage ").split()
            assert main(words) == 0, name
        both = [load(chain.root / "models" / name) for name in ("rf1", "pulled")]
        x, t = torch.randn(5, 2), torch.rand(5)
        assert torch.equal(*(model.network(x, t) for model in both))
        one, other = (read(open_coupling(chain.root / "couplings" / n)) for n in ("rf1", "again"))
        assert torch.equal(one.target, other.target) and torch.equal(one.source, other.source)
    finally:
        chain.write("params.yaml", params)
        for folder in ("models/pulled", "couplings/again", "down-model", "down-pairs"):
            shutil.rmtree(chain.root / folder)
        chain.sh("git", "clean", "-fdq")
        chain.sh("git", "checkout", ".")


def test_a_shipped_folder_goes_up_as_it_is_with_an_edited_card(chain, hub, tmp_path):
    folder = tmp_path / "one-step"
    code, said = reflow("ship", "rf1", "--to", folder, "--export")
    assert code == 0, said
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nA line by hand.\n")
    push(folder, "lab/one-step")
    pull("lab/one-step", tmp_path / "down")
    down = contents(tmp_path / "down")
    assert down.pop("pulled.json") and "A line by hand." in down["README.md"].decode()
    there = contents(folder)
    assert {**down, "reflow.json": b""} == {**there, "reflow.json": b""}
    push(tmp_path / "down", "lab/again")  # and from there to the next one
    assert "pulled.json" not in hub.repos["model", "lab/again"].head
    code, said = reflow("push-hub", folder, "--repo", "lab/one-step", "--licence", "mit")
    assert code == 2 and "README.md; write the licence there" in said.replace("\n", " ")
    script = folder / "sample.py"
    script.write_bytes(script.read_bytes().replace(b"randn", b"zeros"))
    code, said = reflow("push-hub", folder, "--repo", "lab/one-step")
    assert code == 2 and "sample.py: altered" in said


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("couplings/rf1", "pairs/part-00001.parquet"),
        ("couplings/rf1", "pairs/_manifest.json"),
        ("couplings/rf1", "README.md"),
        ("models/rf1", "model.safetensors"),
        ("models/rf1", "reflow.json"),
    ],
)
def test_a_flipped_byte_on_the_hub_is_refused(chain, hub, tmp_path, what, file):
    push(what, "lab/it")
    (repo,) = hub.repos.values()
    content = bytearray(repo.head[file])
    content[len(content) // 2] ^= 1
    repo.head[file] = bytes(content)
    code, said = reflow("pull-hub", "lab/it", "--to", tmp_path / "down")
    assert code == 2 and "error: lab/it: damaged on the hub, nothing was kept" in said
    assert file in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_index_places_elsewhere_is_refused(chain, hub, tmp_path):
    push("models/rf1", "lab/it")
    from flows.library.handed import Index

    head = hub.repos["model", "lab/it"].head
    head["reflow.json"] = Index("model", {"../over": "0"}).text.encode()
    code, said = reflow("pull-hub", "lab/it", "--to", tmp_path / "down")
    assert code == 2 and "'../over' is no file of this folder" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("token", "words", "why"),
    [
        ("", ["pull-hub", "lab/secret"], "lab/secret: not at http://127.0.0.1"),
        ("", ["pull-hub", "lab/nothing"], "or private; check the name, or give a token"),
        (fake.WRITE, ["pull-hub", "lab/secret", "--revision", "v9"], "has no such --revision"),
        (fake.WRITE, ["pull-hub", "lab/bare"], "has no reflow.json"),
        (fake.WRITE, ["pull-hub", "lab"], "lab: not at"),
        (fake.WRITE, ["pull-hub", "lab/a b"], "lab/a b: "),
        ("", ["push-hub", "models/rf1", "--repo", "lab/new"], "no token for http://127.0.0.1"),
        ("hf_old", ["push-hub", "models/rf1", "--repo", "lab/new"], "the token is refused"),
        (fake.READ, ["push-hub", "models/rf1", "--repo", "lab/new"], "no right to write there"),
        (fake.WRITE, ["push-hub", "models/rf1", "--repo", "other/new"], "no right to write there"),
        (fake.WRITE, ["push-hub", "models/rf1", "--repo", "lab/bare", "--private"], "is public"),
        (fake.WRITE, ["push-hub", "rf1", "--repo", "lab/new"], "say models/rf1 or couplings/rf1"),
        (fake.WRITE, ["push-hub", "rf9", "--repo", "lab/new"], "rf9: no model or coupling"),
        (fake.WRITE, ["push-hub", "couplings/independent", "--repo", "lab/new"], "prepared data"),
        (
            fake.WRITE,
            ["push-hub", "models/rf1", "--repo", "lab/new", "--licence", "a: b"],
            "Invalid metadata in README.md",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(chain, hub, tmp_path, monkeypatch, token, words, why):
    push("models/rf1", "lab/secret", "--private")
    hub.repos["model", "lab/bare"] = bare = fake.Repo(private=False)
    bare.commit("main", {"config.json": b"{}"})
    monkeypatch.setenv("HF_TOKEN", token)
    to = [] if words[0] == "push-hub" else ["--to", tmp_path / "down"]
    code, said = reflow(*words, *to)
    assert code == 2 and why in said.replace("\n", " ")
    assert said.count("error:") == 1 and "Traceback" not in said
    assert not list(tmp_path.iterdir())
    assert list(bare.commits) == [bare.branches["main"]]  # nothing half sent


@pytest.mark.parametrize("words", [["push-hub", "models/rf1", "--repo"], ["pull-hub"]])
def test_a_hub_that_does_not_answer_is_one_line(chain, hub, tmp_path, monkeypatch, words):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    to = ["--to", tmp_path / "x"] if words == ["pull-hub"] else []
    code, said = reflow(*words, "lab/it", *to)
    assert code == 2 and "http://127.0.0.1:1 does not answer" in said
    assert said.count("error:") == 1 and not list(tmp_path.iterdir())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, said = reflow(*words, "lab/it", *to)
    assert code == 2 and "HF_HUB_OFFLINE" in said and said.count("error:") == 1


def test_a_card_has_every_field_of_a_manifest_and_no_folder_of_this_machine(chain):
    about = open_coupling(chain.root / "couplings/rf1").about
    more = about.model_copy(
        update={
            "kind": "imported",
            "guidance": 3.0,
            "guidance_within": [0.2, 0.8],
            "origin": {"kind": "npz", "digest": "abc", "stated": {"teacher": "a | b"}},
            "conditions": {"encoder": {"name": "wordllama"}},
            "scale": {"mean": [0.5], "std": [2.0]},
        }
    )
    found = workspace_chain(chain.root)
    data = {"name": "array", "path": "/home/me/secret/data.npy"}
    found = replace(found, about=replace(found.about, settings={"data": data, "gates": {}}))
    metrics = {"endpoint_shift": 0.2, "noise_z": 9.0, "noise_repeats": 0}
    text = data_card("x", "lab/x", more, Made("scratch", metrics, found), None)
    assert '{"name": "array", "path": "data.npy"}' in text and "/home" not in text
    assert "made by the round" not in text and "noise seed" not in text
    for row in (
        '| conditions and text encoder | {"encoder": {"name": "wordllama"}} |',
        "| guidance | 3.0 |", "| guidance between t | [0.2, 0.8] |",
        '"teacher": "a \\| b"', "| noise_z | 9 | fail |", "| endpoint_shift | 0.2 | warn |",
        "| solver_gap_rel |  | not measured | solver_gap_rel was not measured: the pairs come",
        '{"mean": [0.5], "std": [2.0]}', "Not stated by whom handed it on",
    ):  # fmt: skip
        assert row in text, row


@pytest.mark.slow
def test_as_a_process_by_the_environment_alone(chain, hub, monkeypatch):
    for name, value in {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(chain.root / ".reflow/hf"),
    }.items():
        monkeypatch.setenv(name, value)
    command = ("python", "-m", "flows.cli")
    done = chain.sh(*command, "push-hub", "models/rf1", "--repo", "lab/rf1", check=False)
    assert done.returncode == 0 and "lab/rf1 is commit" in done.stdout
    assert "Upload 2 LFS files: 100%" in done.stderr  # progress bars, beside what is said
    monkeypatch.setenv("HF_TOKEN", "")
    done = chain.sh(*command, "push-hub", "models/rf1", "--repo", "lab/rf1", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: lab/rf1: no token for")
    assert len(done.stderr.splitlines()) == 1
    assert all("telemetry" not in line and "agent" not in line for line in hub.asked)


def test_only_what_is_whole_is_pushed(chain, hub):
    file = chain.root / "couplings/rf1/part-00001.parquet"
    content = file.read_bytes()
    manifest = file.with_name(MANIFEST)
    file.unlink()  # a link into DVC's cache
    try:
        for now in (content[:-1], content[:100] + b"?" + content[101:]):
            file.write_bytes(now)
            code, said = reflow("push-hub", "couplings/rf1", "--repo", "lab/pairs")
            assert code == 2 and "not the coupling that dvc.lock records" in said.replace("\n", " ")
        pointer = {"manifest": hashlib.md5(manifest.read_bytes()).hexdigest(), "md5": "0"}
        (file.parent / POINTER).write_text(json.dumps(sealed(pointer)))
        code, said = reflow("push-hub", "couplings/rf1", "--repo", "lab/pairs")
        assert code == 2 and "couplings/rf1: its shards are in S3" in said
        (file.parent / POINTER).unlink()
        outside = chain.root / "outside"
        shutil.copytree(chain.root / "couplings/rf1", outside)
        code, said = reflow("push-hub", outside, "--repo", "lab/pairs")
        assert code == 2 and "part-00001.parquet: altered" in said.replace("\n", "")
    finally:
        file.unlink()
        file.write_bytes(content)
        (file.parent / POINTER).unlink(missing_ok=True)
        shutil.rmtree(chain.root / "outside", ignore_errors=True)
    assert not hub.asked


def test_a_coupling_without_its_chain_has_the_card_of_its_manifest(chain, hub, tmp_path):
    shutil.copytree(chain.root / "couplings/rf1", tmp_path / "fetched")
    push(tmp_path / "fetched", "lab/pairs")
    text = hub.repos["dataset", "lab/pairs"].head["README.md"].decode()
    assert "fetched, 100 pairs" in text and "handed on without its chain" in text
    assert "Not stated by whom handed it on" in text and "license" not in text


def test_a_second_push_changes_what_changed_and_deletes_what_is_gone(chain, hub, tmp_path):
    push("couplings/rf1", "lab/pairs")
    repo = hub.repos["dataset", "lab/pairs"]
    repo.head["LICENSE"] = b"by hand"
    said = push("couplings/rf1", "lab/pairs", "--revision", "v1", "-m", "as a branch")
    assert {"main", "v1"} == set(repo.branches)
    first = contents(chain.root / "couplings/rf1")
    folder, whole = tmp_path / "small", open_coupling(chain.root / "couplings/rf1").about
    for index in range(2):
        adopt(folder, index, chain.root / "couplings/rf1" / shard_name(index))
    finish(folder, whole.model_copy(update={"pairs": 80}), 2)  # a coupling keeps its shards
    said = push(folder, "lab/pairs")
    names = set(repo.head)
    assert "LICENSE" in names and "pairs/part-00002.parquet" not in names, said
    pull("lab/pairs", tmp_path / "new")
    pull("lab/pairs", tmp_path / "old", "--revision", "v1")
    assert contents(tmp_path / "old/pairs") == first
    assert contents(tmp_path / "new/pairs") == contents(folder)


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(chain, hub):
    push("models/rf1", "lab/it")
    hub.before_commit = lambda repo: repo.commit("main", {**repo.head, "x": b""}, "meanwhile")
    code, said = reflow("push-hub", "models/rf1", "--repo", "lab/it", "--licence", "mit")
    assert code == 2 and "somebody committed meanwhile" in said
    assert "license" not in hub.repos["model", "lab/it"].head["README.md"].decode()


def test_a_model_and_a_data_set_of_one_name_are_told_apart(chain, hub, tmp_path):
    push("models/rf1", "lab/rf1")
    push("couplings/rf1", "lab/rf1")
    code, said = reflow("pull-hub", "lab/rf1", "--to", tmp_path / "x")
    assert code == 2 and "say models/lab/rf1 or datasets/lab/rf1" in said.replace("\n", " ")
    assert "whole; coupling" in pull("datasets/lab/rf1", tmp_path / "pairs")
    assert "whole; model" in pull("models/lab/rf1", tmp_path / "model")
    code, said = reflow("pull-hub", "models/lab/rf1", "--to", tmp_path / "model")
    assert code == 2 and "is there already; name a new folder" in said.replace("\n", " ")


def test_a_push_that_broke_off_has_committed_nothing_and_goes_on(chain, hub):
    hub.fails["/lfs/"] = 2  # the list of objects, and the first of them
    code, said = reflow("push-hub", "couplings/rf1", "--repo", "lab/pairs")
    assert code == 2 and "Error while uploading" in said and "410" in said
    repo = hub.repos["dataset", "lab/pairs"]
    assert set(repo.head) == {".gitattributes"} and len(hub.objects) == 1
    hub.fails.clear()
    before = len(hub.asked)
    push("couplings/rf1", "lab/pairs")
    sent = [line for line in hub.asked[before:] if line.startswith("PUT /lfs/")]
    assert len(sent) == 2 and "pairs/part-00002.parquet" in repo.head


def test_a_pull_that_broke_off_goes_on(chain, hub, tmp_path):
    push("couplings/rf1", "lab/pairs")
    hub.fails["part-00002"] = 0
    code, said = reflow("pull-hub", "lab/pairs", "--to", tmp_path / "down")
    assert (
        code == 2
        and "the download broke off (" in said
        and "410" in said
        and "Traceback" not in said
    )
    assert not (tmp_path / "down").exists()
    hub.fails.clear()
    before = len(hub.asked)
    pull("lab/pairs", tmp_path / "down")
    got = [line for line in hub.asked[before:] if line.startswith("GET") and "/resolve/" in line]
    assert len(got) < 6 and list(tmp_path.iterdir()) == [tmp_path / "down"]
