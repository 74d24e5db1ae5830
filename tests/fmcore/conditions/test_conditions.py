"""Conditions from data to samples: the table, networks, guidance within times, retrieval."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fmcore.conditions import encoders
from fmcore.conditions import table as conditions
from fmcore.conditions.encoders import Conditions, EncoderFolder, WordLlama
from fmcore.conditions.table import Table
from fmcore.couple import Couple, couple, couple_shards
from fmcore.coupling.compact import Store
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import open_coupling
from fmcore.coupling.verify import verify
from fmcore.dataset.arrays import Array
from fmcore.dataset.images import Images
from fmcore.initialise import initialise
from fmcore.measure import retrieval
from fmcore.measure.retrieval import Gallery
from fmcore.network.build import build, take
from fmcore.network.images import DiT, MMDiT, UNet
from fmcore.network.mlp import MLP
from fmcore.network.store import load
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.sampling.prompts import prompted
from fmcore.settings import GuidanceWithin, ReflowError
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.executor import Executor
from fmcore.work.work import Work

TEXTS = ("left", "right")
CENTRES = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])


class Letters(encoders.TextEncoder):
    """An encoder for tests: the first letter as a one-hot vector."""

    name: str = "letters"

    def encode(self, texts):
        """Return [N, 26]."""
        rows = torch.zeros(len(texts), 26)
        for row, text in zip(rows, texts, strict=True):
            if text:
                row[ord(text[0]) - 97] = 5.0
        return encoders.Embedded(rows)

    def digest(self):
        """Return a constant."""
        return "letters"


def blobs(folder, encoder=True):
    """Write 400 points near two centres with texts or vectors, as an .npz; return its settings."""
    draw = torch.Generator().manual_seed(0)
    side = torch.arange(400) % 2
    x = CENTRES[side] + 0.1 * torch.randn(400, 2, generator=draw)
    texts = np.array([TEXTS[i] for i in side.tolist()])
    vectors = torch.eye(3)[side].numpy()
    np.savez(folder / "x.npz", target=x.numpy(), text=texts, vector=vectors)
    given = Conditions(encoder=WordLlama(name="wordllama", dim=8)) if encoder else Conditions(
        column="vector"
    )  # fmt: skip
    return Array(name="array", path=str(folder / "x.npz"), key="target", conditions=given)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A small flow on two captioned blobs, and the guided pairs that it makes."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("captions")
    prepare(root / "data", blobs(root), seed=0)
    initialise(root / "data", root / "init", MLP(width=32, depth=2, conditions={}), seed=0)
    how = Train(steps=300, batch=128, lr=5e-3, ema=0.98, warmup=10, label_dropout=0.2)
    files = (root / "rf1", root / "rf1.csv", root / "rf1.json")
    train(root / "data", root / "init", *files, how, name="rf1", work=Work(scratch=root / "tmp1"))
    guided = GuidanceWithin(strength=2.0, within=(0.25, 0.75))
    pairs = Couple(pairs=64, solver=Solver(name="euler", steps=8), guidance=guided)
    given = (root / "rf1", root / "data", root / "pairs", root / "pairs.json")
    couple(*given, pairs, Work(scratch=root / "tmp2"))
    return root


def test_the_table_has_each_text_once_and_its_digest_is_in_every_identity(chain):
    about = verify(chain / "data").about
    table = open_coupling(chain / "data").conditions
    assert table.texts == TEXTS and len(table) == 2 and table.vectors.shape == (3, 8)
    assert not table.vectors[-1].any()  # the null condition is the empty text
    assert about.conditions["sha256"] == table.sha256
    assert len(about.conditions["encoder"]["sha256"]) == 64
    for folder in ("init", "rf1"):
        assert load(chain / folder).config["conditions"] == about.conditions
    made = verify(chain / "pairs")
    assert made.about.conditions == about.conditions and made.conditions.texts == TEXTS


@pytest.mark.parametrize("how", ["shards", "dask:1", pytest.param("ray:1", marks=pytest.mark.long)])
def test_texts_guidance_and_pieces_have_the_bytes_of_one_process(chain, tmp_path, how):
    if how != "shards":
        pytest.importorskip({"dask:1": "distributed"}.get(how, "ray"))
    settings = Couple(
        pairs=48, shard=16, solver=Solver(name="euler", steps=8), store=Store(pieces=4),
        guidance=GuidanceWithin(strength=2.0, within=(0.25, 0.75)),
    )  # fmt: skip
    given, found = (chain / "rf1", chain / "data"), {}
    for name in ("one", how):
        executor = Executor.parse("in-process" if name in ("one", "shards") else how)
        work = Work(scratch=tmp_path / f"{name}-scratch", executor=executor)
        for some in (range(1, 3), range(1)) if name == "shards" else ():
            couple_shards(*given, settings, some, work)
        out = tmp_path / f"{name}-out"
        couple(*given, out, tmp_path / f"{name}.json", settings, work)
        found[name] = {file.name: file.read_bytes() for file in out.iterdir()}
    about = open_coupling(tmp_path / "one-out").about
    assert about.conditions and about.guidance and about.store["pieces"] == 4
    assert found[how] == found["one"]


def test_a_damaged_table_is_refused(chain, tmp_path):
    table = open_coupling(chain / "data").conditions
    conditions.put(tmp_path, table.content[:-1] + b"x")
    with pytest.raises(ReflowError, match="damaged"):
        conditions.read(tmp_path, table.about)


def test_a_round_learns_its_texts_and_is_sampled_from_its_folder_alone(chain):
    flow = Flow.of(load(chain / "rf1"))
    noise = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    for text, centre in zip(TEXTS, CENTRES, strict=True):
        label = torch.full((100,), load(chain / "rf1").label(text))
        x = flow.sample(noise, Solver(name="heun", steps=8), label=label).x
        own = prompted(flow, [text])
        again = own.sample(noise, Solver(name="heun", steps=8), label=torch.zeros(100).long()).x
        assert (x.mean(0) - centre).norm() < 0.5
        assert torch.equal(x, again)  # a text of the table is its row


def test_a_new_text_is_embedded_when_it_is_asked_for(chain):
    flow = prompted(Flow.of(load(chain / "rf1")), ["left side", "right side"])
    noise = torch.zeros(2, 2)
    x = flow.sample(noise, Solver(name="euler", steps=8), label=torch.tensor([0, 1])).x
    assert x[0, 0] < x[1, 0]


def test_data_with_another_encoder_is_refused(chain, tmp_path):
    data = blobs(tmp_path)
    other = Conditions(encoder=WordLlama(name="wordllama", dim=16))
    prepare(tmp_path / "data", data.model_copy(update={"conditions": other}), seed=0)
    files = (tmp_path / "out", tmp_path / "c.csv", tmp_path / "m.json")
    with pytest.raises(ReflowError, match="conditions are others"):
        how = Train(steps=1, batch=16)
        train(
            tmp_path / "data",
            chain / "init",
            *files,
            how,
            name="x",
            work=Work(scratch=tmp_path / "t"),
        )


def test_vectors_are_conditions_without_an_encoder(tmp_path):
    prepare(tmp_path / "data", blobs(tmp_path, encoder=False), seed=0)
    table = open_coupling(tmp_path / "data").conditions
    assert table.vectors.shape == (3, 3) and not table.texts
    with pytest.raises(ReflowError, match="vectors, not texts"):
        encoders.beside(["red"], table)


def test_chains_without_conditions_say_nothing_of_them(tmp_path):
    data = blobs(tmp_path).model_copy(update={"conditions": None})
    prepare(tmp_path / "data", data, seed=0)
    initialise(tmp_path / "data", tmp_path / "init", MLP(width=8, depth=1), seed=0)
    for file in (tmp_path / "data/_manifest.json", tmp_path / "init/config.json"):
        assert '"conditions"' not in file.read_text()


VECTORS = Table(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
TOKENS = Table(
    torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(1)).half(),
    torch.arange(6)[None] < torch.tensor([[2], [3], [4], [6], [1]]),
    torch.randn(5, 12, generator=torch.Generator().manual_seed(2)),
)
TINY = [
    (MLP(width=16, depth=1, conditions={}), VECTORS),
    (UNet(name="unet", channels=(8, 24), head=4, conditions={}), VECTORS),
    (DiT(name="dit", heads=2, depth=1, conditions={}), VECTORS),
    (DiT(name="dit", heads=2, depth=1, conditions={}), TOKENS),
    (UNet(name="unet", channels=(8, 24), head=4, attend=(1,), conditions={}), TOKENS),
    (MMDiT(name="mmdit", heads=2, depth=2, conditions={}), TOKENS),
]


@pytest.mark.parametrize(("settings", "table"), TINY)
def test_networks_take_conditions_which_have_no_effect_before_training(settings, table, tmp_path):
    network = take(build(settings.sized(table), (3, 8, 8), seed=0), table)
    x, t = torch.randn(3, 3, 8, 8), torch.rand(3)
    label = torch.tensor([0, 1, 4])
    out, null = network(x, t, label), network(x, t)
    assert out.shape == x.shape and torch.allclose(out, null, atol=1e-6)
    optimiser = torch.optim.SGD(network.parameters(), 0.3)
    aim = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(4):  # the maps of conditions are 0 at first: their gradient is not
        loss = (network(x, t, label) - aim).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert not torch.allclose(network(x, t, label)[:2], network(x, t)[:2], atol=1e-6)
    assert not any("given" in name for name in network.state_dict())


@pytest.mark.parametrize(("settings", "table"), TINY[-2:])
def test_tokens_that_are_no_text_change_nothing_in_a_unet(settings, table):
    if settings.name != "unet":
        pytest.skip("SD3 attends to padding, too")
    network = take(build(settings.sized(table), (3, 8, 8), seed=0), table)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, label = torch.randn(1, 3, 8, 8), torch.rand(1), torch.tensor([0])
    before = network(x, t, label)
    noisy = table.vectors.clone()
    noisy[~table.mask] = 9.0
    network.given.take(replace(table, vectors=noisy))
    assert torch.allclose(before, network(x, t, label), atol=1e-4)


def test_a_large_table_is_not_in_the_model_which_says_where_it_is(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "KEPT", 1)
    initialise(chain / "data", tmp_path / "init", MLP(width=8, depth=1, conditions={}), seed=0)
    assert not (tmp_path / "init" / conditions.FILE).exists()
    with pytest.raises(ReflowError, match="prepared data"):
        load(tmp_path / "init").network(torch.zeros(1, 2), torch.zeros(1))


def test_guidance_within_times_counts_what_it_evaluates(chain):
    flow = Flow.of(load(chain / "rf1"))
    calls = []
    counted = replace(
        flow, network=lambda x, t, label: calls.append(t) or flow.network(x, t, label)
    )
    guided = GuidanceWithin(strength=3.0, within=(0.25, 0.75))
    noise, label = torch.randn(256, 2), torch.arange(256) % 2
    euler = Solver(name="euler", steps=8)
    given = {"batch": 256, "label": label, "guidance": guided}
    found = counted.sample(noise, euler, **given)
    assert found.nfe == 8 + 5 == len(calls)  # one tile each; t = 0.75, 0.625, 0.5, 0.375, 0.25
    assert json.loads((chain / "pairs.json").read_text())["nfe"] == 13
    about = open_coupling(chain / "pairs").about
    assert (about.guidance, about.guidance_within, about.nfe) == (2.0, [0.25, 0.75], 13)
    full = flow.sample(noise, euler, **{**given, "guidance": 3.0})
    whole = flow.sample(
        noise, euler, **{**given, "guidance": GuidanceWithin(strength=3.0, within=(0.0, 1.0))}
    )
    assert full.nfe == whole.nfe == 16 and torch.allclose(full.x, whole.x)


def test_adaptive_solvers_count_the_null_row_by_row(chain):
    flow = Flow.of(load(chain / "rf1"))
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    label = torch.arange(8) % 2
    solver = Adaptive(rtol=1e-3, atol=1e-3)
    plain = flow.sample(noise, solver, label=label).evaluations
    never = GuidanceWithin(strength=3.0, within=(1e-12, 2e-12))  # no step lands there
    always = flow.sample(noise, solver, label=label, guidance=3.0).evaluations
    assert bool((always % 2 == 0).all()) and bool((always > plain).all())
    assert torch.equal(flow.sample(noise, solver, label=label, guidance=never).evaluations, plain)
    some = GuidanceWithin(strength=3.0, within=(0.4, 0.6))
    found = flow.sample(noise, solver, label=label, guidance=some).evaluations
    assert bool((found > plain).all()) and len(set(found.tolist())) > 1


@pytest.mark.parametrize("given", [{"within": (0.5, 0.5)}, {"within": (0.2, 0.8), "strength": 1.0}])
def test_times_without_guidance_are_refused(given):
    with pytest.raises(ValueError, match="within|strength"):
        GuidanceWithin(**{"strength": 2.0, **given})


def test_retrieval_on_a_closed_case():
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0], [20.0], [21.0]])
    gallery = Gallery(features, torch.tensor([0, 0, 1, 1, 2, 2]))
    queries = torch.tensor([[0.4], [10.6], [0.2], [21.4]])
    hits = gallery.hits(queries, torch.tensor([0, 1, 1, 2]))
    assert hits[:, 0].tolist() == [True, True, False, True]
    assert hits[:, 1].tolist() == [True, True, True, True]  # five of six
    alone = gallery.hits(features, gallery.label, itself=torch.arange(6))
    assert bool(alone[:, 0].all())
    assert torch.allclose(gallery.chance(torch.tensor([0]))[0], torch.tensor([1 / 3, 1.0]).double())


def test_a_condition_that_trains_beyond_the_gallery_is_seen(monkeypatch):
    ids = torch.arange(200)
    held = Pairs(ids, torch.zeros(200, 1), torch.zeros(200, 1)).held_out
    order = torch.cat([ids[held], ids[~held]])  # the gallery has nothing that trains
    label = torch.arange(200) % int(held.sum())  # every condition trains but the last
    label[label == held.sum() - 1] = torch.where(held[order][label == held.sum() - 1], 99, 0)
    real = Pairs(order, torch.zeros(200, 1), torch.zeros(200, 1), label)
    monkeypatch.setattr(retrieval, "GALLERY", int(held.sum()))
    groups = retrieval.asked(real)
    assert not groups["retrieval"].any()
    assert groups["retrieval_unseen"].tolist() == (label[: held.sum()] == 99).tolist()
    assert int(groups["retrieval_unseen"].sum()) == 1


def test_wordllama_is_the_mean_of_its_package_and_asks_no_network(monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a connection"))
    found = WordLlama(name="wordllama", dim=64).encode(["red heart", "cat", ""])
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer
    from wordllama.inference import WordLlamaInference

    weights, tokens = WordLlama(name="wordllama").files()
    table = load_file(weights)["embedding.weight"][:, :64].astype(np.float32)
    theirs = WordLlamaInference(table, Tokenizer.from_file(str(tokens)))
    expected = torch.from_numpy(theirs.embed(["red heart", "cat"], norm=True))
    assert torch.allclose(found.vectors[:2] / 8, expected.float(), atol=1e-5)
    assert not found.vectors[2].any()


def bert(folder, kind="BertModel", **how):
    """Save a small BERT with the head of `kind`; return the model and its encoder."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    model.to(how.pop("dtype", torch.float32)).save_pretrained(folder)
    return model, EncoderFolder(name="folder", path=str(folder), length=5)


def test_a_folder_of_transformers_gives_sequences(tmp_path):
    _, encoder = bert(tmp_path / "bert")
    found = encoders.table_of(["cat", "red cat"], encoder)
    assert found.vectors.shape == (3, 5, 8) and found.pooled.shape == (3, 8)
    assert found.mask.sum(1).tolist() == [3, 4, 2]
    assert not found.vectors[~found.mask].any()
    before = encoder.digest()
    (tmp_path / "bert" / "extra").write_text("x")
    assert encoder.digest() != before
    with pytest.raises(ReflowError, match="another one than that of the model"):
        encoders.beside(["new"], found)


def test_an_encoder_whose_pooler_was_never_trained_gives_the_mean(tmp_path):
    model, encoder = bert(tmp_path / "bert", "BertForMaskedLM")
    found = encoder.encode(["red cat"])
    states = model.bert(torch.tensor([[2, 5, 6, 3, 0]]), torch.tensor([[1, 1, 1, 1, 0]]))[0]
    torch.testing.assert_close(found.pooled[0], states[0, :4].mean(0), atol=1e-5, rtol=0)
    assert torch.equal(encoder.encode(["red cat"]).pooled, found.pooled)
    own, encoder = bert(tmp_path / "whole")
    pooled = own(torch.tensor([[2, 5, 6, 3, 0]]), torch.tensor([[1, 1, 1, 1, 0]])).pooler_output
    torch.testing.assert_close(encoder.encode(["red cat"]).pooled, pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrong", ["lacks a layer", "another size"])
def test_an_encoder_that_lacks_weights_is_refused(tmp_path, wrong):
    from safetensors.torch import load_file, save_file

    _, encoder = bert(tmp_path / "bert")
    file, name = tmp_path / "bert/model.safetensors", "encoder.layer.1.output.dense.weight"
    weights = load_file(file)
    weights.pop(name) if wrong == "lacks a layer" else weights.update({name: torch.zeros(8, 4)})
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ReflowError, match=rf"can be read \(it has no {name} of its config"):
        encoder.encode(["cat"])


def test_an_encoder_that_was_saved_in_half_computes_in_float32(tmp_path):
    model, encoder = bert(tmp_path / "bert", dtype=torch.float16)
    ids, mask = torch.tensor([[2, 5, 6, 3, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    found = encoder.encode(["red cat"]).pooled
    torch.testing.assert_close(found, model.float()(ids, mask).pooler_output, atol=1e-6, rtol=0)


def test_a_decoder_that_an_encoder_does_not_need_may_lack(tmp_path):
    transformers = pytest.importorskip("transformers")
    _, encoder = bert(tmp_path / "t5")
    config = transformers.T5Config(
        vocab_size=7, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    model = transformers.T5EncoderModel(config).eval()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "t5" / name).unlink()
    model.save_pretrained(tmp_path / "t5")
    found = encoder.encode(["red cat"])
    assert found.vectors.shape == (1, 5, 8) and bool(found.vectors[0, :4].any())


def test_texts_beside_images(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("black\n")
    given = Images(name="images", root=str(tmp_path), conditions=Conditions())
    with pytest.raises(ReflowError, match=r"b\.png: has no text"):
        given.read(0)
    lines = [{"file_name": f"{n}.png", "text": n} for n in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = given.read(0)
    assert found.captions == ("a", "b") and not found.skipped
