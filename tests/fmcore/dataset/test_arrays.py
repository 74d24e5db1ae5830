"""Arrays of the user: layouts, bytes, columns, labels; what is found is said, the rest is asked."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.lib import format as npy_format

from fmcore.dataset.arrays import Array
from fmcore.settings import ReflowError

PIXELS = np.random.default_rng(0).integers(0, 256, size=(4, 12, 10, 3), dtype=np.uint8)
PIXELS[0, 0, 0, 0] = 255
NCHW = PIXELS.transpose(0, 3, 1, 2)
GRAY = np.ascontiguousarray(PIXELS[..., 0])
IN_UNIT = torch.tensor(NCHW, dtype=torch.float32) / 127.5 - 1


def read(path, **settings):
    return Array(name="array", path=str(path), **settings).read(0)


def saved(folder, array, **settings):
    np.save(folder / "x.npy", array)
    return read(folder / "x.npy", **settings)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64"])
@pytest.mark.parametrize("asked", ["auto", "named"])
def test_images_of_bytes_in_any_layout_are_the_same_images(tmp_path, dtype, asked):
    for layout, array in {"nhwc": PIXELS, "nchw": NCHW, "nhw": GRAY}.items():
        settings = {} if asked == "auto" else {"layout": layout}
        found = saved(tmp_path, array.astype(dtype), **settings)
        wanted = IN_UNIT[:, :1] if layout == "nhw" else IN_UNIT
        assert found.image and torch.equal(found.target, wanted), layout
        assert any(f"layout: {layout}" in note for note in found.notes)
        assert "bytes: 0 to 255 were scaled to [-1, 1]" in found.notes


def test_fortran_order_is_the_same_array(tmp_path):
    assert torch.equal(saved(tmp_path, np.asfortranarray(PIXELS)).target, IN_UNIT)


SAME = {
    "vectors": np.float32([[0.5, 300.0]] * 4),
    "series": np.random.default_rng(1).normal(size=(4, 3, 20)).astype("float32"),
    "counts": np.float32([[0, 1, 2, 3]] * 4)[:, :, None].repeat(20, 2),
    "five channels": np.random.default_rng(2).normal(size=(4, 5, 8, 8)).astype("float32"),
    "bytes in vectors": np.arange(8, dtype=np.uint8).reshape(2, 4) * 30,
    "truth values": np.array([[True, False], [False, True]]),
}


@pytest.mark.parametrize("name", SAME)
def test_samples_that_are_no_images_are_taken_as_they_are(tmp_path, name):
    found = saved(tmp_path, SAME[name])
    assert not found.image
    np.testing.assert_array_equal(found.target.numpy(), SAME[name].astype("float32"))


def test_float_images_in_unit_range_are_taken_as_they_are(tmp_path):
    found = saved(tmp_path, IN_UNIT.numpy())
    assert found.image and torch.equal(found.target, IN_UNIT)


AMBIGUOUS = {
    "bytes with four channels": np.full((4, 8, 8, 4), 200, np.uint8),
    "bytes in short series": np.full((4, 3, 20), 200, np.uint8),
    "channels first or last": np.zeros((4, 3, 8, 3), np.float32),
    "floats with channels last": np.zeros((4, 8, 8, 3), np.float32),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_layout_that_is_not_sure_is_asked_for(tmp_path, name):
    with pytest.raises(ReflowError, match=r"x\.npy.*images or vectors.*Set data\.layout to nhw"):
        saved(tmp_path, AMBIGUOUS[name])
    found = saved(tmp_path, AMBIGUOUS[name], layout="vectors")
    assert found.target.shape == AMBIGUOUS[name].shape and not found.image


def test_a_layout_that_does_not_fit_is_refused(tmp_path):
    for layout in ("nhw", "nhwc"):
        with pytest.raises(ReflowError, match=rf"is no {layout} .N samples"):
            saved(tmp_path, IN_UNIT.numpy(), layout=layout)


def test_bounds_are_those_of_the_file(tmp_path):
    assert saved(tmp_path, NCHW, low=0.0, high=255.0).target.max() == 1
    with pytest.raises(ReflowError, match="expected 0 to 9"):
        saved(tmp_path, NCHW, low=0.0, high=9.0)
    kept = saved(tmp_path, NCHW.astype("float32"), low=0.0, high=255.0)
    assert kept.target.max() == 255, "floats with bounds are the user's own units"


def test_an_array_that_needs_no_conversion_is_mapped(tmp_path):
    found = saved(tmp_path, np.zeros((4, 6), np.float32))
    with (tmp_path / "x.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    assert found.target[-1, -1] == 7, "no copy was made"


LABELS = {
    "0 to K-1": ([0, 1, 2, 1], [0, 1, 2, 1], None),
    "from 1": ([1, 2, 3, 1], [0, 1, 2, 0], ("1", "2", "3")),
    "gaps": ([0, 5, 90000, 5], [0, 1, 2, 1], ("0", "5", "90000")),
    "numbers sort as numbers": ([10, 9, 10, 9], [1, 0, 1, 0], ("9", "10")),
    "texts": (["dog", "cat", "dog", "eel"], [1, 0, 1, 2], ("cat", "dog", "eel")),
    "truth values": ([True, False, True, True], [1, 0, 1, 1], ("false", "true")),
    "whole floats": ([0.0, 1.0, 1.0, 0.0], [0, 1, 1, 0], None),
}


@pytest.mark.parametrize("kind", ["parquet", "npz", "csv"])
@pytest.mark.parametrize("name", LABELS)
def test_labels_are_numbered_in_their_order_and_keep_their_names(tmp_path, name, kind):
    given, numbers, names = LABELS[name]
    path, values = tmp_path / f"x.{kind}", np.float32([[1, 2]] * 4)
    if kind == "parquet":
        pq.write_table(pa.table({"target": values.tolist(), "label": given}), path)
    elif kind == "npz":
        np.savez(path, target=values, label=np.array(given))
    else:
        path.write_text("a,b,label\n" + "".join(f"1,2,{label}\n" for label in given))
    found = read(path)
    assert found.label.dtype == torch.int64 and found.label.tolist() == numbers
    assert found.names == names
    assert found.target.tolist() == values.tolist()
    found.check()


def test_the_column_text_holds_the_conditions_where_there_are_labels_too(tmp_path):
    texts, values = ["a cat", "a dog", "NA", "null"], np.float32([[1, 2]] * 4)
    conditions = {"encoder": {"name": "wordllama"}}
    lists = {"target": values.tolist(), "text": texts}
    for label in ([0, 1, 0, 1], list("xyxy"), None):
        given = {} if label is None else {"label": label}
        pq.write_table(pa.table({**lists, **given}), tmp_path / "x.parquet")
        np.savez(tmp_path / "x.npz", x=values, text=texts, **given)
        pa.csv.write_csv(pa.table({"a": [1] * 4, "b": [2] * 4, "text": texts, **given}),
                         tmp_path / "x.csv")  # fmt: skip
        for kind in ("parquet", "npz", "csv"):
            found = read(tmp_path / f"x.{kind}", conditions=conditions)
            assert found.captions == tuple(texts) and found.target.tolist() == values.tolist()
            assert "conditions: 'text' (data.conditions.column)" in found.notes


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("column", ["text", "vector"])
def test_a_caption_belongs_to_each_sample(tmp_path, count, column):
    more = {"text": np.array(["a"] * count), "vector": np.zeros((count, 2))}
    np.savez(tmp_path / "x.npz", target=np.zeros((4, 2)), **more)
    with pytest.raises(ReflowError, match=rf"4 samples, but {count} texts or vectors in '{column}"):
        read(tmp_path / "x.npz", conditions={"column": column})


def test_a_number_of_its_own_for_each_row_is_no_class(tmp_path):
    pq.write_table(pa.table({"target": [[1.0]] * 50, "label": range(50)}), tmp_path / "x.parquet")
    with pytest.raises(ReflowError, match="50 values in 50 rows"):
        read(tmp_path / "x.parquet")


def test_columns_of_a_wide_table(tmp_path):
    wide = pa.table({"u": [1, 2], "v": [3.5, 4.5], "w": ["x", "y"], "kind": ["b", "a"]})
    pq.write_table(wide, tmp_path / "x.parquet")
    pa.csv.write_csv(wide, tmp_path / "x.csv")
    for file in ("x.parquet", "x.csv"):
        found = read(tmp_path / file, columns=["v", "u"], label="kind")
        assert found.target.tolist() == [[3.5, 1], [4.5, 2]] and found.names == ("a", "b")
        for columns, says in (
            (["u", "z"], "no column 'z'; it has: u, v, w, kind"),
            (["u", "u"], "each column of numbers once"),
            (["kind"], "each column of numbers once"),
        ):
            with pytest.raises(ReflowError, match=says):
                read(tmp_path / file, columns=columns, label="kind")
    with pytest.raises(ReflowError, match="column 'w' holds string, expected numbers"):
        read(tmp_path / "x.parquet", columns=["u", "w"])
    with pytest.raises(ReflowError, match="no column 'target'.*data.columns"):
        read(tmp_path / "x.parquet")


def test_lists_of_lists_and_bytes_in_parquet_keep_their_shape(tmp_path):
    pq.write_table(pa.table({"target": PIXELS.tolist()}), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet", layout="nhwc")
    assert torch.equal(found.target, IN_UNIT)


def test_tensors_of_arrow_keep_their_shape(tmp_path):
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(NCHW))
    pq.write_table(pa.table({"target": column}), tmp_path / "x.parquet")
    assert torch.equal(read(tmp_path / "x.parquet").target, IN_UNIT)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["01", "1", "2", "01"], ("01", "1", "2")),
        (["01", "02", "01", "02"], ("01", "02")),
        (["1.5x", "1", "1.0", "1"], ("1", "1.0", "1.5x")),
        (["1.0", "1", "2", "1"], ("1", "1.0", "2")),
        (["true", "TRUE", "false", "true"], ("TRUE", "false", "true")),
        (["NA", "null", "N/A", "NA"], ("N/A", "NA", "null")),
        (["1.0", "2.0", "1.0", "2.0"], ("1", "2")),
    ],
)
def test_classes_of_a_csv_file_differ_as_their_texts_do(tmp_path, given, names):
    path = tmp_path / "x.csv"
    path.write_text("a,label\n" + "".join(f"1,{label}\n" for label in given))
    found = read(path)
    assert found.names == names
    assert [names[i] for i in found.label] == given or given[0] == "1.0"
    path.write_text("a,label\n1,x\n2,\n3,x\n4,y\n")
    with pytest.raises(ReflowError, match="row 1 has ''"):
        read(path)


def test_names_of_columns_may_be_numbers_where_they_are_listed(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("0,1,label\n5,6,x\n7,8,y\n")
    with pytest.raises(ReflowError, match=r"first line holds numbers \(0, 1\).*in data\.columns"):
        read(path)
    assert read(path, columns=["0", "1"]).target.tolist() == [[5, 6], [7, 8]]
    path.write_text("5,6\n7,8\n")
    with pytest.raises(ReflowError, match="no column '0'; it has: 5, 6"):
        read(path, columns=["0", "1"])


def test_the_index_of_pandas_is_no_feature(tmp_path):
    path = tmp_path / "x.csv"
    pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}).to_csv(path)
    with pytest.raises(ReflowError, match=r"column 1 has no name.*index=False"):
        read(path)
    assert read(path, columns=["a", "b"]).target.tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("label", [np.array([1, 0, 1, 0]), np.array(["b", "a", "b", "a"])])
def test_labels_of_a_npz_file_in_any_byte_order_or_as_a_column(tmp_path, label):
    path, x = tmp_path / "x.npz", np.zeros((4, 2), np.float32)
    for given in (label.astype(label.dtype.newbyteorder(">")), label[:, None]):
        np.savez(path, target=x, label=given)
        assert read(path).label.tolist() == [1, 0, 1, 0]
    np.savez(path, target=x, label=np.eye(4))
    with pytest.raises(ReflowError, match=r"'label' has the shape \[4, 4\].*by argmax"):
        read(path)


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_whole_numbers_that_float32_does_not_hold_are_said(tmp_path, kind):
    for value, said in ((2**24, False), (-(2**25) - 1, True)):
        x = np.array([[0, value]] * 4)
        if kind == "npy":
            found = saved(tmp_path, x)
        else:
            pq.write_table(pa.table({"target": x.tolist()}), tmp_path / "x.parquet")
            found = read(tmp_path / "x.parquet")
        assert any("rounded to float32" in note for note in found.notes) == said, value


def test_csv_says_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "x.csv"
    for text, says in (
        ("1,2\n3,4\n", "first line holds numbers"),
        ("a,b\n1,x\n", "not a CSV file of numbers"),
        ("a,b\n1,\n", "column 'b' has empty cells"),
        ("a,b\n1,2,3\n", "not a CSV file of numbers"),
        ("", "data.columns must name"),
        ("a,b\n", "expected .N, .... with N > 0"),
    ):
        path.write_text(text)
        with pytest.raises(ReflowError, match=says):
            read(path)
    path.write_text("\ufeffa,b\n1,2\n3,4\n", encoding="utf-8")
    assert read(path).target.tolist() == [[1, 2], [3, 4]]


def test_arrays_of_a_npz_file_by_their_keys(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=GRAY, b=np.zeros((2, 2)), y=np.array(list("ab" * 2)))
    found = read(path, key="a", label="y")
    assert torch.equal(found.target, IN_UNIT[:, :1]) and found.names == ("a", "b")
    with pytest.raises(ReflowError, match=r"no array ''; it has: a, b, y.*data\.key"):
        read(path)
    with pytest.raises(ReflowError, match="2 samples, but 4 labels"):
        read(path, key="b", label="y")
    np.savez(path, only=np.asfortranarray(PIXELS))
    assert torch.equal(read(path).target, IN_UNIT)


def test_settings_of_another_kind_of_file_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    for settings in ({"key": "a"}, {"columns": ["a"]}, {"label": "y"}):
        with pytest.raises(ReflowError, match=rf"data\.{next(iter(settings))}: is for"):
            read(tmp_path / "x.npy", **settings)
    with pytest.raises(ReflowError, match=r"expected a \.npy, \.npz, \.parquet, \.csv file"):
        (tmp_path / "x.pt").touch()
        read(tmp_path / "x.pt")


def test_headers_of_npy_that_promise_too_much(tmp_path):
    path = tmp_path / "x.npy"
    for header in (
        {"descr": "<f4", "fortran_order": False, "shape": (10**15, 4)},
        {"descr": "<f4", "fortran_order": False, "shape": (-3, 4)},
        {"descr": "|O", "fortran_order": False, "shape": (1, 1)},
    ):
        with path.open("wb") as file:
            npy_format.write_array_header_1_0(file, header)
            file.write(b"\0" * 16)
        with pytest.raises(ReflowError, match=r"x\.npy"):
            read(path)
