"""Files that are damaged, or lie, are refused in one line that says how to mend it."""

import io
import json
import pickle
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fmcore.coupling.compact import Store
from fmcore.coupling.read import open_coupling, read
from fmcore.outside import agreement
from fmcore.outside.export import export
from fmcore.settings import CONVENTION, ReflowError
from fmcore.verdict.gates import Gates, judge
from fmcore.work.work import Work
from tests.fmcore.coupling.test_compact import make
from tests.fmcore.outside.layouts import as_bytes, data, pairs, taken, write


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    data(tmp_path)
    return tmp_path


def refused(root, says, **how):
    with pytest.raises(ReflowError, match=says) as error:
        taken(root, **how)
    said = str(error.value)
    assert "\n" not in said and "Traceback" not in said and len(said) < 400
    assert not (root / "out").exists()


def npz(root, **arrays):
    np.savez(root / "p.npz", **arrays)
    return {"kind": "npz", "path": str(root / "p.npz")}


def test_swapped_ends(root):
    own = pairs()
    how = npz(root, target=own["source"], source=own["target"])
    refused(root, "the ends are swapped", **how)


def test_time_that_runs_back(root):
    path = write("npz", root, pairs())
    (path / "metadata.json").write_text(json.dumps({"convention": "t=0 noise, t=1 data"}))
    refused(root, "says 't=0 noise, t=1 data'", kind="npz", path=str(path))


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("noise_z", lambda z: 1.5 * z),
        ("noise_z", lambda z: np.sign(z).astype(np.float32)),
        ("noise_repeats", lambda z: np.concatenate([z[:-1], z[:1]])),
        ("endpoint_shift", lambda z: z),
    ],
)
def test_gates_see_what_is_wrong_with_noise_and_data(root, gate, change):
    own = pairs(4000)
    shift = 5.0 if gate == "endpoint_shift" else 0.0
    how = npz(root, target=own["target"] + np.float32(shift), source=change(own["source"]))
    seen = []
    taken(root, work=Work(scratch=root / "w", accept=seen.append), **how)
    failed = {v.gate for v in judge(Gates(), seen[0]) if v.state == "fail"}
    assert gate in failed


def test_pairs_that_are_right_pass_the_gates(root):
    seen = []
    own = pairs(4000)
    taken(root, work=Work(scratch=root / "w", accept=seen.append), **npz(root, **own))
    judged = {v.gate: v.state for v in judge(Gates(endpoint_shift={"fail": 0.5}), seen[0])}
    assert judged["noise_z"] == judged["noise_repeats"] == "ok" and "solver_gap_rel" not in judged


def test_wrong_shapes(root):
    own = pairs()
    wide = np.zeros((120, 3), np.float32)
    refused(root, r"shape \[3\], the data \[2\]", **npz(root, target=wide, source=wide))
    how = npz(root, target=own["target"], source=own["source"][:100])
    refused(root, "arrays of different length", **how)
    how = npz(root, target=own["target"], source=own["source"].astype(str))
    refused(root, "expected numbers", **how)
    labelled = {"label": np.full(120, 0.5)}
    refused(root, "expected one whole number", **npz(root, **own, **labelled))


@pytest.mark.parametrize("side", ["target", "source"])
def test_a_number_that_is_none(root, side):
    own = pairs()
    own[side][70, 1] = np.nan
    refused(root, rf"{side} of pair 70 is not finite \(1 of 120", **npz(root, **own))


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("parquet", "1-of-2.parquet"),
        ("npz", "1-of-2.npz"),
        ("safetensors", "1-of-2.safetensors"),
        ("webdataset", "1-of-2.tar"),
        ("npy", "source.npy"),
        ("pt", "pair_7.pt"),
        ("datasets", "data-00000-of-00001.arrow"),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file(root, kind, file, share):
    path = write(kind, root, pairs())
    whole = (path / file).read_bytes()
    (path / file).write_bytes(whole[: int(share * len(whole))])
    refused(root, file, kind=kind, path=str(path))


def test_a_tar_that_ends_between_two_pairs(root):
    """What a copy leaves that was stopped there: all of its members can be read."""
    path = write("webdataset", root, pairs())
    with tarfile.open(path / "1-of-2.tar") as archive:
        cut = archive.getmembers()[20].offset
    whole = (path / "1-of-2.tar").read_bytes()
    (path / "1-of-2.tar").write_bytes(whole[:cut])
    refused(root, "the mark at its end is missing", kind="webdataset", path=str(path))


def test_counts_that_lie(root):
    path = write("npz", root, pairs())
    (path / "1-of-2.npz").rename(path.parent / "elsewhere.npz")
    refused(root, "its names say 2 files, 1 are there", kind="npz", path=str(path))
    (path.parent / "elsewhere.npz").rename(path / "1-of-2.npz")
    (path / "metadata.json").write_text(json.dumps({"num_samples": 121, "teacher": "x"}))
    refused(root, "120 pairs found.*num_samples 121", kind="npz", path=str(path))
    (path / "metadata.json").unlink()
    (path / "sizes.json").write_text(json.dumps({"1-of-2.npz": 59}))
    refused(root, "60 pairs found, 59 stated", kind="npz", path=str(path))
    (path / "sizes.json").unlink()
    refused(root, "121 pairs asked for, 120 are there", kind="npz", path=str(path), pairs=121)


def test_a_pair_that_is_there_twice(root):
    own = pairs()
    ids = np.arange(120)
    ids[3] = 7
    refused(root, "pair 7 is there twice", **npz(root, **own, pair_id=ids))
    folder = write("pt", root, own)
    torch.save({}, folder / "9.pt")
    torch.save({}, folder / "09.pt")
    refused(root, "pair 9 is there twice", kind="pt", path=str(folder))
    tars = root / "tars"
    tars.mkdir()
    for name in ("a", "b"):
        with tarfile.open(tars / f"{name}.tar", "w") as archive:
            for side in ("target", "source"):
                member = tarfile.TarInfo(f"000001.{side}.npy")
                content = as_bytes(own[side][0])
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    refused(root, "is there twice", kind="webdataset", path=str(tars))


class Bomb:
    def __reduce__(self):
        return (print, ("ran",))


def test_objects_that_may_run_code_are_not_loaded(root, capsys):
    folder = root / "bombs"
    folder.mkdir()
    torch.save({"target": torch.zeros(2), "source": Bomb()}, folder / "0.pt")
    refused(root, "may run code, so it is not loaded", kind="pt", path=str(folder))
    array = np.array([Bomb()], dtype=object)
    np.savez(root / "p.npz", target=array, source=array)
    refused(root, "pickled objects", kind="npz", path=str(root / "p.npz"))
    (root / "npy").mkdir()
    for side in ("target", "source"):
        (root / "npy" / f"{side}.npy").write_bytes(pickle.dumps(Bomb()))
    refused(root, "plain .npy", kind="npy", path=str(root / "npy"))
    assert "ran" not in capsys.readouterr().out


def test_a_compressed_archive_says_how_to_write_it(root):
    np.savez_compressed(root / "p.npz", **pairs())
    assert zipfile.ZipFile(root / "p.npz").infolist()[0].compress_type
    refused(root, "numpy.savez instead of", kind="npz", path=str(root / "p.npz"))


def test_columns_that_are_not_there_or_hold_no_numbers(root):
    own = pairs()
    rows = pa.table({"image": list(own["target"]), "noise": list(own["source"]), "t": ["a"] * 120})
    pq.write_table(rows, root / "p.parquet")
    how = {"kind": "parquet", "path": str(root / "p.parquet")}
    refused(root, "has no 'target'; it has: image, noise, t; give import.target", **how)
    refused(root, "source holds texts, expected numbers", **how, target="image", source="t")
    refused(root, "are both 'image'", **how, target="image", source="image")
    refused(root, "no such file", kind="parquet", path=str(root / "none"))
    refused(root, "check the kind", kind="webdataset", path=str(root / "data"))


def test_a_flipped_bit_of_parquet(root):
    path = write("parquet", root, pairs())
    file = path / "0-of-2.parquet"
    own = pairs()
    rows = pa.table({side: list(x[:60]) for side, x in own.items()})
    pq.write_table(rows, file, write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    at = content.find(own["target"][:4].tobytes())
    content[at + 1] ^= 1
    file.write_bytes(content)
    refused(root, "0-of-2.parquet", kind="parquet", path=str(path))


def test_store_needs_sources_and_another_scale_is_refused(root):
    how = npz(root, **pairs())
    refused(root, "store.source false", **how, store={"source": False})


def test_a_part_without_rows_is_no_damage(root):
    path = write("parquet", root, pairs())
    schema = pq.read_schema(next(path.glob("*.parquet")))
    for name in ("0-a.parquet", "9.parquet"):  # as Spark writes an empty partition
        pq.ParquetWriter(path / name, schema.append(pa.field("pair_id", pa.int64()))).close()
        assert not pq.read_metadata(path / name).num_row_groups
    assert len(taken(root, kind="parquet", path=str(path))) == 120


def test_what_is_said_of_pairs_has_to_suit_the_data(root):
    own = open_coupling(root / "data")
    said = {"convention": CONVENTION, "codec": None, "conditions": None, "source": None}
    agreement.of_statement(said, own, model_units=True)
    agreement.of_statement({"source": "imagenet", "codec": "h264"}, own, model_units=True)
    other = {"sha256": "a" * 64}
    for key, value, says in (
        ("codec", other, r"pairs are of data\.codec sha256 aaaaaaaaaaaa, the data here of none"),
        ("conditions", other, r"data\.conditions sha256 a"),
        ("source", {"name": "cats"}, "both need one `source`"),
    ):
        with pytest.raises(ReflowError, match=says):
            agreement.of_statement({**said, key: value}, own, model_units=True)
    assert agreement.guided({"guided": True}) is None is agreement.guided({"guided": 2.0})
    assert agreement.guided({**said, "guided": 2.0}) == 2
    about = own.about.model_copy(update={"classes": ["cat", "dog"]})
    named = replace(own, about=about)
    agreement.of_statement({**said, "classes": ["cat", "dog"]}, named, model_units=True)
    for swapped in (
        lambda: agreement.of_statement(
            {**said, "classes": ["dog", "cat"]}, named, model_units=True
        ),
        lambda: agreement.of_chain(
            about.model_copy(update={"classes": ["dog", "cat"]}), about, "c"
        ),
    ):
        with pytest.raises(ReflowError, match=r"classes \[dog, cat\], those of the data of \[cat"):
            swapped()


def test_guidance_that_is_stated_otherwise(root):
    path = write("npz", root, pairs())
    (path / "metadata.json").write_text(json.dumps({"guidance": 4.5}))
    refused(root, "the pairs say 4.5", kind="npz", path=str(path), guidance=2.0)


def test_inverted_pairs_keep_their_held_out_samples_or_are_refused(root):
    mixed = make(root / "mixed", Store(), shape=(2,), mixed=True)
    export(mixed, root / "npz", "npz")
    how = {"kind": "npz", "path": str(root / "npz")}
    with pytest.raises(ReflowError, match="of a mixed coupling, made from real samples"):
        taken(root, **how)
    taken(root, **how, real="target")
    own = read(open_coupling(mixed))
    kept = taken(root, name="whole", kind="reflow", path=str(mixed))
    assert torch.equal(kept.held_out, own.held_out)
