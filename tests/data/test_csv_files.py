# SPDX-License-Identifier: Apache-2.0
"""CSV: the numbers that are written there, all of them, or the line and column of what is not."""

import numpy as np
import pytest

from tal_fast.data.formats.arrays import array_file
from tal_fast.errors import DataError

BOM = "\ufeff"


def load(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return array_file(str(path), "csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f0,f1\n1.5,-2\n3e1,.5\n", [[1.5, -2], [30, 0.5]]),
        (BOM + "f0,f1\n1.5,2\n3,4\n", [[1.5, 2], [3, 4]]),
        ('"f0","f1"\r\n"1.5","2"\r\n', [[1.5, 2]]),
        ("f0, f1\n1.5, 2 \n\n\n", [[1.5, 2]]),
        ("f0,f1\r1,2\r3,4", [[1, 2], [3, 4]]),
        ("0,1,2\n0.5,1,2\n", [[0.5, 1, 2]]),  # pandas, columns without names
        (",f0,f1\n0,1.5,2\n1,3,4\n", [[1.5, 2], [3, 4]]),  # pandas, with its index
        (",0,1\n0,1.5,2\n1,3,4\n", [[1.5, 2], [3, 4]]),
        ("f0,f1\n0,10\n1,11\n", [[0, 10], [1, 11]]),  # integers that count, among integers
        ("f0\n3.40282347e38\n", [[np.finfo(np.float32).max]]),
    ],
)
def test_values(tmp_path, text, expected):
    found = load(tmp_path / "a.csv", text)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected a CSV file, got an empty file"),
        ("f0,f1\n", ": expected rows of numbers after the column names, got none"),
        ("\nf0,f1\n1,2\n", "line 1: expected column names, got an empty line"),
        # A first line that is a row, or may be one.
        ("1.5,2.5\n3,4\n", "line 1, column 1: expected a column name, got '1.5' .*not a row"),
        (BOM + "1.5,2.5\n3,4\n", "line 1, column 1: expected a column name, got '1.5'"),
        ("1.5,NA\n3,4\n", "line 1, column 1: expected a column name, got '1.5'"),
        ("NA,nan\n3,4\n", "line 1, column 1: expected a column name, got 'NA'"),
        ("f0,1.5\n3,4\n", "line 1, column 2: expected a column name, got '1.5'$"),
        ("1_000,2_000\n3,4\n", "line 1, column 1: .* got '1_000'"),
        ("0x1p3,0x2p1\n3,4\n", "line 1, column 1: .* got '0x1p3'"),
        ("0.1D+00,0.2D+00\n3,4\n", r"line 1, column 1: .* got '0\.1D"),
        ("\u0661,\u0662\n3,4\n", "line 1, column 1: .* got '\u0661'"),
        ('"1,5","2,5"\n"3,5","4,5"\n', "line 1, column 1: .* got '1,5'"),
        ("0,1,2\n3,4,5\n", "line 1: 0, 1, 2 may be column names or a row"),
        ("0\n1.5\n", "line 1: 0 may be column names or a row"),
        # Columns that are no channels.
        (",f0,f1\n5,1.5,2\n9,3,4\n", "line 1, column 1: expected a column name, got an empty cell"),
        ("f0,f1,\n1,2,\n", "line 1, column 3: expected a column name, got an empty cell"),
        ("frame,f0\n0,1.5\n1,2.5\n", "line 1, column 1: 'frame' counts the rows"),
        ("Unnamed: 0,f0\n1,1.5\n2,2.5\n", "line 1, column 1: 'Unnamed: 0' counts the rows"),
        # Separators.
        ("f0;f1\n1,5;2,5\n", "line 1: expected commas between the columns, got semicolons"),
        ("f0\tf1\n1\t2\n", "line 1: expected commas between the columns, got tabs"),
        # Cells.
        ("f0,f1\n1,2\n3,x\n", "line 3, column 2: expected a number, got 'x'"),
        ("f0,f1\n1,2\n3,\n", "line 3, column 2: expected a number, got an empty cell"),
        ("f0,f1\n1,2\n3\n", "line 3: expected 2 cells as in line 1, got 1"),
        ("f0,f1\n1,2,\n", "line 2: expected 2 cells as in line 1, got 3"),
        ("f0,f1\n1,2\n\n3,4\n", "line 3: expected 2 numbers, got none"),
        ("f0,f1\n1,nan\n", "line 2, column 2: expected a finite number, got 'nan'"),
        ("f0,f1\n-Infinity,1\n", "line 2, column 1: expected a finite number, got '-Infinity'"),
        ("f0,f1\n1,2\n1,1e39\n", r"line 3, column 2: 1e39 does not fit into float32 \(largest"),
        ("f0,f1\n-1e999,2\n", "line 2, column 1: -1e999 does not fit into float32"),
        ("f0,f1\n1_000,2\n", "line 2, column 1: expected a number, got '1_000'"),
        ("f0,f1\n0x1p3,2\n", "line 2, column 1: expected a number, got '0x1p3'"),
        ("f0,f1\n\u0661,2\n", "line 2, column 1: expected a number, got '\u0661'"),
        ("f0,f1\n1,2#3\n", "line 2, column 2: expected a number, got '2#3'"),
        ('f0,f1\n"1,2\n', "line 2: not valid CSV"),
        ("f0,f1\n1,2\n".encode("utf-16"), ": expected a CSV file in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_feature_is_located(tmp_path, text, message):
    with pytest.raises(DataError, match=r"a\.csv: ?" + message.lstrip(": ")):
        load(tmp_path / "a.csv", text)
