# SPDX-License-Identifier: Apache-2.0
"""From any bytes that call themselves a feature file to a batch: NumPy's numbers, or an error."""

import io
import os

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tal_fast.data.feature_index import read_extent
from tal_fast.data.reading import FeatureReader, Request
from tal_fast.errors import DataError

SHAPES = st.tuples(st.integers(0, 40), st.integers(0, 12)) | st.tuples(st.integers(0, 40))
DTYPES = st.sampled_from(["<f2", "<f4", "<f8", ">f4", "<i4", "<c8", "|u1"])


@st.composite
def files(draw):
    """A .npy file, perhaps with some bytes changed, cut off or added."""
    shape, dtype = draw(SHAPES), np.dtype(draw(DTYPES))
    size = int(np.prod(shape)) * dtype.itemsize
    values = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(values, order=draw(st.sampled_from("CF"))))
    content = bytearray(out.getvalue())
    for place, value in draw(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)),
                                      max_size=3)):  # fmt: skip
        content[place] = value
    cut = draw(st.sampled_from([0, 0, 0, -1, -7, 3]))
    return bytes(content[:cut] if cut < 0 else content + b"x" * cut)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=files(), layout=st.sampled_from(["TC", "CT"]), data=st.data())
def test_any_file_is_read_as_numpy_reads_it_or_refused(tmp_path_factory, content, layout, data):
    path = os.path.join(tmp_path_factory.getbasetemp(), "any.npy")
    with open(path, "wb") as file:
        file.write(content)
    try:
        extent = read_extent(path, layout=layout)
    except DataError:
        return
    values = np.load(path)  # what we accept, NumPy can read
    values = values if layout == "TC" else values.T
    assert values.shape == (extent.rows, extent.columns)
    start = data.draw(st.integers(0, extent.rows - 1))
    stop = data.draw(st.integers(start + 1, extent.rows))
    reader = FeatureReader({"v": extent}, ["v"], check_finite=False)
    rows = np.array([[0, start, stop, extent.rows]])
    ((_, features, mask),) = reader.read([Request(rows, stop - start + 2, None)])
    reader.close()
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(values[start:stop].astype("<f4"))
    assert torch.equal(features[0, : stop - start].nan_to_num(7), expected.nan_to_num(7))
    assert mask[0].tolist() == [False] * (stop - start) + [True] * 2
