"""`reflow ship ROUND --to FOLDER`: whole or not at all, with a card of the comparison's numbers."""

import json

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.ship import HandOn
from fmcore.network.predictions import Discrete
from fmcore.network.store import load
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from tests import tiny_chain
from tests.fmcore.ship.test_students import UNET, student

RF2 = """
  rf2:
    coupling: rf1
    init: rf1
    train: {steps: 10, batch: 32, adapter: {kind: lora, rank: 2}}
couplings:"""
PARAMS = tiny_chain.PARAMS.replace("\ncouplings:", RF2)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    with tiny_chain.in_this_process(tmp_path_factory.mktemp("ship"), PARAMS) as project:
        yield project


def ship(*words):
    done = CliRunner().invoke(app, ["ship", *words])
    return done.exit_code, done.output


def test_a_round_is_handed_on_with_its_card(chain):
    code, said = ship("rf1", "--to", "out", "--nfe", "2", "--export", "--licence", "mit")
    assert code == 0, said
    assert sorted(p.name for p in (chain.root / "out").iterdir()) == [
        "README.md", "flow.pt2", "reflow.json", "sample.py",
    ]  # fmt: skip
    noise = torch.randn(4, 2)
    assert torch.export.load(chain.root / "out/flow.pt2").module()(noise).shape == (4, 2)
    text = (chain.root / "out/README.md").read_text()
    assert text.startswith("---\nlicense: mit\n") and "python sample.py 16" in text
    found = json.loads((chain.root / "comparison/rounds.json").read_text())
    distances = found["rounds"][0][found["metric"]]
    row = next(line for line in text.splitlines() if line.startswith("| rf1 |"))
    shown = [float(cell.split(" ±")[0]) for cell in row.split(" | ")[1:3]]
    assert shown == pytest.approx([distances["1"], distances["2"]], rel=0.02)
    assert "rf1, a rectified flow of gaussian" in text and f"`{found['metric']}`" in text
    assert chain.sh("git", "rev-parse", "HEAD").stdout.strip()[:12] in text


def test_another_grid_is_in_the_graph_and_on_the_card(chain):
    words = ("--export", "--times", "1,0.9,0.5,0")
    code, said = ship("rf1", "--to", "uneven", *words)  # the graph is compared with the round
    assert code == 0, said
    text = (chain.root / "uneven/README.md").read_text()
    assert "here in 3 steps of Euler at the times 1, 0.9, 0.5, 0. Commit" in text
    assert "They were measured on even steps; on the grid that is shipped they differ." in text


def test_an_adapter_goes_with_its_round_and_the_card_says_so(chain):
    code, said = ship("rf2", "--to", "adapted", "--export")
    assert code == 0 and "adapted/adapter: the adapter alone" in said.replace("\n", ""), said
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        ours = chain.root / "models/rf2/adapter" / name
        assert (chain.root / "adapted/adapter" / name).read_bytes() == ours.read_bytes()
    text = (chain.root / "adapted/README.md").read_text()
    assert "a LoRA adapter of rank 2 of the model" in text and "\n- lora\n" in text
    start, adapted = (load(chain.root / "models" / name) for name in ("rf1", "rf2"))
    loaded = PeftModel.from_pretrained(start.network, chain.root / "adapted/adapter")
    noise, t = torch.randn(4, 2), torch.ones(4)
    torch.testing.assert_close(loaded(noise, t), adapted.network(noise, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["rf9", "--to", "x", "--export"], "no round 'rf9'"),
        (["rf1", "--to", "x"], "none of diffusers'; add --export or --onnx"),
        (["rf1", "--to", "models", "--export"], "is there already; name a new folder"),
        (["rf1", "--to", "x", "--as", "best"], "neither --as nor --rule"),
        (["rf1", "--export"], "--to FOLDER"),
        (["rf1", "--as", "best", "--nfe", "4"], "--to FOLDER"),
        (["rf1", "--as", "best", "--shift", "3"], "--to FOLDER"),
        (
            ["rf1", "--to", "x", "--export", "--times", "1,half,0"],
            "got '1,half,0'",
        ),
        (["rf1", "--to", "x", "--export", "--times", "1,0.5"], "times must fall from 1 to 0"),
        (["rf1", "--to", "x", "--export", "--times", "1,0.5,0", "--nfe", "3"], "a whole grid"),
        (["rf1", "--to", "x", "--export", "--shift", "0"], "Invalid value for '--shift'"),
        (["rf1", "--to", "x", "--export", "--guidance", "2"], "needs a round with classes"),
    ],
)
def test_what_cannot_be_shipped_is_one_line_and_leaves_nothing(chain, words, why):
    code, said = ship(*words)
    assert code == 2 and why in said.replace("\n", " ") and "Traceback" not in said
    assert not (chain.root / "x").exists() and not list(chain.root.glob(".x.part"))


def test_a_model_that_dvc_lock_does_not_record_is_not_handed_on(chain):
    file = chain.root / "models/rf1/raw.safetensors"
    content = file.read_bytes()
    file.unlink()  # a link into DVC's cache
    file.write_bytes(content + b" ")
    try:
        code, said = ship("rf1", "--to", "x", "--export")
    finally:
        file.write_bytes(content)
    assert code == 2 and "not the model that dvc.lock records" in said.replace("\n", " ")
    assert not (chain.root / "x").exists()


def test_a_graph_is_kept_where_diffusers_has_no_folder(tmp_path):
    prediction = Discrete(name="v_prediction", zero_terminal_snr=True)
    given = student(tmp_path, "UNet2DModel", prediction, (1, 8, 8), config=UNET)
    part = tmp_path / "part"
    part.mkdir()
    solver = Solver(name="euler", steps=3)
    said, use = HandOn(tmp_path / "x", solver, export=True)._folder(part, given)
    assert said[0].startswith("no folder for diffusers: --nfe 3: its last time step is noise")
    assert len(said) == 1 and use == [] and not list(part.iterdir())
    with pytest.raises(ReflowError, match="on its own grid: --times 1,"):
        HandOn(tmp_path / "x", solver)._folder(part, given)
    said, use = HandOn(tmp_path / "x", Solver(name="euler", steps=1))._folder(part, given)
    assert said[0].endswith(': diffusers loads it: pipe = DiffusionPipeline.from_pretrained("x")')
    assert use[-2].startswith("images = pipe(") and (part / "model_index.json").is_file()
