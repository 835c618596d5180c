# SPDX-License-Identifier: Apache-2.0
"""Whatever an id looks like, all that asks for its features gives the same answer."""

import os

import numpy as np
import pytest

from tal_fast import cli
from tal_fast.data.dataset import open_dataset
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.packing import pack_features
from tal_fast.data.streams import streams_of
from tal_fast.data.validation import validate_dataset
from tal_fast.errors import DataError


def rename(tiny, new, *, features=True):
    tiny.database = {new if name == "a" else name: v for name, v in tiny.database.items()}
    values = tiny.features.pop("a")
    if features:
        tiny.features[new] = values
    tiny.write()


def packed(tiny, videos=None):
    streams = streams_of(tiny.path / "features", "%s.npy")
    pack_features(streams, tiny.path / "packed", videos=videos)
    with OpenStream(*streams_of(tiny.path / "packed")) as opened:
        return opened.videos()


IDS = [
    "P01/P01_01", "a/b/c d", ".hidden", "x/.y", "two words", "v1.2", "v_a", "A", "back\\slash",
    "%s", "-dash", "*", "new\nline", "caf\u00e9", "cafe\u0301", "-" * 250,
]  # fmt: skip


@pytest.mark.parametrize("video", IDS, ids=ascii)
def test_one_answer_for_an_id(tiny, video):
    rename(tiny, video)
    data = open_dataset(tiny.path)
    assert data.splits["train"] == [video, "b", "c"]
    assert open_dataset(tiny.path, unmatched="skip").features == data.features
    assert validate_dataset(tiny.path).findings == ()
    # Without its features: left out, or missing, by all of them.
    assert sorted(packed(tiny)) == sorted([video, "b", "c", "d"])
    os.unlink(tiny.file(video))
    with pytest.raises(DataError, match="no such feature file"):
        open_dataset(tiny.path)
    assert open_dataset(tiny.path, unmatched="skip").left_out == {
        "without features (unmatched: skip)": (video,)
    }
    (finding,) = validate_dataset(tiny.path).findings
    assert (finding.check, finding.severity, finding.count) == ("missing-features", "error", 1)
    assert f"video {video!r}: no {video + '.npy'!r}" in finding.examples[0]
    with pytest.raises(DataError, match="1 of 1 video is missing"):
        pack_features(streams_of(tiny.path / "features", "%s.npy"), tiny.path / "p", videos=[video])


@pytest.mark.parametrize(
    "video", ["../b", "x/../b", "/b", "b/", "x//b", "./b", ".", "..", "", "\0b"]
)
def test_an_id_does_not_lead_out_of_the_folder(tiny, video):
    rename(tiny, video, features=False)
    (tiny.path / "features/x").mkdir()
    np.save(tiny.path / "b.npy", tiny.values(0, 40))
    message = "features: expected an id that names a file in this folder, got "
    for rule in ("error", "skip"):
        with pytest.raises(DataError, match=message):
            open_dataset(tiny.path, unmatched=rule)
    (finding,) = validate_dataset(tiny.path).errors
    assert finding.check == "unreadable"
    assert message in finding.examples[0]
    with pytest.raises(DataError, match=message):
        packed(tiny, [video])


def test_an_id_that_no_file_can_have(tiny):
    rename(tiny, "\ud800", features=False)
    with pytest.raises(DataError, match=r"'\\ud800' cannot be the name of a file"):
        open_dataset(tiny.path)


def test_a_longer_name_than_files_have_is_missing(tiny):
    rename(tiny, "b" * 300, features=False)
    with pytest.raises(DataError, match="no such feature file"):
        open_dataset(tiny.path)
    assert open_dataset(tiny.path, unmatched="skip").splits["train"] == ["b", "c"]
    assert validate_dataset(tiny.path).count("missing-features") == 1


@pytest.mark.parametrize(("there", "asked"), [("e\u0301", "\u00e9"), ("\u00e9", "e\u0301")])
def test_names_that_look_the_same_are_told_apart(tiny, there, asked):
    rename(tiny, f"caf{asked}", features=False)
    np.save(tiny.file(f"caf{there}"), tiny.values(0, 40))
    file, wanted = f"caf{there}.npy", f"caf{asked}.npy"
    hint = (
        f"; did you mean {file!r}? It looks the same, but is in another Unicode form: {file!a}, "
        f"not {wanted!a}"
    )
    tiny.spec["extra_features"] = "ignore"
    tiny.write()
    with pytest.raises(DataError) as raised:
        open_dataset(tiny.path)
    assert hint in str(raised.value)
    os.unlink(tiny.file("b"))
    with pytest.raises(DataError) as raised:
        open_dataset(tiny.path)
    assert hint in str(raised.value), "also where it is one of several"
    (finding,) = validate_dataset(tiny.path).errors
    assert hint in finding.examples[0]


def test_a_file_name_that_is_not_utf8(tiny, capsys):
    """As an archive from another system leaves it; the annotation has the name in UTF-8."""
    rename(tiny, "caf\u00e9", features=False)
    name = os.fsencode(tiny.path / "features") + b"/caf\xe9.npy"
    with open(name, "wb") as file:
        np.save(file, tiny.values(0, 40))
    with pytest.raises(DataError, match=r"1 feature files without annotation: 'caf\\udce9' "):
        open_dataset(tiny.path)
    assert cli.main(["validate", "--data", str(tiny.path)]) == 1
    shown = capsys.readouterr().out
    assert "training may not start: missing-features, extra-features" in shown
    assert r"video 'caf\udce9'" in shown
    assert open_dataset(tiny.path, unmatched="skip").splits["train"] == ["b", "c"]
    with pytest.raises(DataError, match=r"video 'caf\\udce9': its name is not UTF-8"):
        packed(tiny)


def test_features_of_others_lie_beside_those_of_annotated_videos(tiny):
    rename(tiny, "P01/P01_01")
    folder = tiny.path / "features"
    for name in ("old/x", ".trash/x", "P01/._P01_01", "P01/.x"):
        (folder / name).parent.mkdir(exist_ok=True)
        np.save(folder / f"{name}.npy", tiny.values(9, 3))
    with pytest.raises(DataError, match=r"1 feature files without annotation: P01/\.x \("):
        open_dataset(tiny.path)
    assert validate_dataset(tiny.path).count("extra-features") == 1
    tiny.spec["extra_features"] = "ignore"
    tiny.write()
    assert len(open_dataset(tiny.path).features) == 4
    assert [f.severity for f in validate_dataset(tiny.path).findings] == ["warning"]
    assert set(packed(tiny)) == {"P01/P01_01", "b", "c", "d", "old/x", "P01/.x"}


def test_a_link_to_a_folder_is_followed_once(tiny, tmp_path):
    rename(tiny, "P01/P01_01")
    os.rename(tiny.path / "features/P01", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tiny.path / "features/P01")
    os.symlink(tiny.path / "features", tmp_path / "elsewhere/back")
    assert "P01/P01_01" in open_dataset(tiny.path, unmatched="skip").features
    assert sorted(packed(tiny)) == ["P01/P01_01", "b", "c", "d"]


def test_a_video_that_one_of_two_streams_lacks_is_left_out(tiny):
    tiny.write()
    os.rename(tiny.path / "features", tiny.path / "rgb")
    tiny.spec["features"] = ["rgb", "features"]
    tiny.spec["feature"]["channels"] = 8
    tiny.write()
    os.unlink(tiny.file("b"))
    with pytest.raises(DataError, match=r"video 'b': .*no such feature file"):
        open_dataset(tiny.path)
    data = open_dataset(tiny.path, unmatched="skip")
    assert data.splits["train"] == ["a", "c"]
    assert data.channels == 8
