# SPDX-License-Identifier: Apache-2.0
"""What preparing one's own data says: which segments count where, and advice that works."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from own_files import RATE

import tal_fast
from tal_fast.data import open_dataset, validation
from tal_fast.data.prepare import FeatureChoice, Repairs, prepare_csv, prepare_json
from tal_fast.errors import DataError


class TestBeyond:
    """Segments beyond the video: which count where."""

    def test_prepare_validate_and_evaluate_tell_one_number(self, own):
        own.lines += [["clip_03", 30.0, 40.0, "run"], ["clip_03", 5.0, 40.0, "walk"]]
        own.column("subset", lambda number: "test" if number in (3, 4) else "train")
        report = own.prepare(repairs=Repairs(out_of_range="clamp"))
        data = open_dataset(own.path / "out")
        assert (report.instances, report.out_of_range, report.cut, report.outside) == (22, 2, 1, 1)
        lines = "\n".join(report.lines())
        assert "22 instances of 2 classes, 21 of them for training" in lines
        assert "2 segments reach beyond the video: for training 1 cut to it and 1 outside" in lines
        assert data.annotations.num_instances == 21
        result = validation.validate_dataset(own.path / "out")
        assert sum(split.instances for split in result.splits) == 22
        said = [item.message for item in result.findings if item.check == "out-of-range"]
        assert any("training leaves them out" in message for message in said)
        assert any("training sees them cut to the video" in message for message in said)
        predictions = {"results": {"clip_03": [{"segment": [5, 40], "label": "walk", "score": 1}]}}
        scored = tal_fast.evaluate(own.path / "out", predictions)
        assert scored.num_ground_truth == 6
        assert any("2 segments reach beyond the video; they are scored as" in str(note)
                   for note in scored.notes)  # fmt: skip

    def test_kept(self, own):
        own.lines[0][2] = 30.0
        report = own.prepare(repairs=Repairs(out_of_range="keep"))
        assert "1 segment reaches beyond the video, for training" in "\n".join(report.lines())


class TestAdvice:
    """What a message advises works as it stands."""

    def test_videos_without_features_and_durations(self, own):
        (own.path / "features" / "clip_07.npy").unlink()
        (own.path / "features" / "clip_08.npy").unlink()
        for repairs in (Repairs(), Repairs(missing="skip")):
            with pytest.raises(DataError, match="--exclude clip_07 --exclude clip_08 ") as caught:
                own.prepare(repairs=repairs)
            assert "did you mean" not in str(caught.value)
        report = own.prepare(repairs=Repairs(exclude=["clip_07", "clip_08"]))
        lines = "\n".join(report.lines())
        assert "2 of 10 annotated videos left out as --exclude" in lines
        assert "split test: 2 of 8 videos, drawn" in lines

    @pytest.mark.parametrize("number", [1, 2, 10])
    def test_names_in_other_capitals(self, own, number):
        """To leave such videos out, as of those without features, would lose them."""
        for name in own.names[:number]:
            file = own.path / "features" / f"{name}.npy"
            file.rename(file.with_name(f"{name.upper()}.npy"))
        which = f"{number} of {number} videos are" if number > 1 else "it is"
        words = f"{which} there with other capitals, such as 'CLIP_00.npy' for 'clip_00': "
        first = True
        while True:
            try:
                own.prepare()
                break
            except DataError as error:
                text = str(error)
            if first:
                assert words in text
            first = False
            assert text.endswith(f"or the videos in {own.path / 'segments.csv'}")
            assert "--exclude" not in text
            assert "--missing" not in text
            move, old, new = shlex.split(text.partition("rename the files (")[2].partition(")")[0])
            assert move == "mv"
            Path(old).rename(new)

    def test_names_in_other_capitals_elsewhere(self, own):
        own.column("duration", "20.0")
        own.prepare()
        for name in own.names[:2]:
            file = own.path / "features" / f"{name}.npy"
            file.rename(file.with_name(f"{name.upper()}.npy"))
        said = r"2 videos without .*; 2 of 2 videos are there with other capitals, such as 'CLIP_00"
        with pytest.raises(DataError, match=said):
            open_dataset(own.path / "out")
        found = validation.validate_dataset(own.path / "out").findings
        (finding,) = (item for item in found if item.check == "missing-features")
        assert "no 'clip_00.npy', but 'CLIP_00.npy': rename the file or the video" in str(finding)
        report = own.prepare(repairs=Repairs(missing="skip"), overwrite=True)
        assert "2 of 2 videos are there with other capitals, such as" in "\n".join(report.lines())

    def test_predictions_in_other_capitals(self, own):
        own.column("subset", "test")
        predictions = {"results": {"CLIP_04": [{"segment": [5, 9], "label": "run", "score": 1}]}}
        own.lines[0][-1] = "train"
        own.lines[1][-1] = "train"
        own.prepare()
        with pytest.raises(DataError, match=r"'CLIP_04' is not in .*; did you mean 'clip_04'\?"):
            tal_fast.evaluate(own.path / "out", predictions)

    def test_with_durations_they_can_be_skipped(self, own):
        (own.path / "features" / "clip_07.npy").unlink()
        own.column("duration", "20.0")
        with pytest.raises(DataError, match=r"clip_07; --missing skip \(missing='skip'\) leaves"):
            own.prepare()
        assert own.prepare(repairs=Repairs(missing="skip")).missing == ("clip_07",)

    def test_many_are_better_left_out_of_the_table(self, own):
        own.lines += [[f"more_{number}", 1.0, 2.0, "run"] for number in range(21)]
        with pytest.raises(DataError, match=r"leave their lines out of .*segments\.csv"):
            own.prepare()


class TestLayout:
    """A wrong layout is told first, and not blamed on the rate or on the channels."""

    def swap(self, own, lengths):
        for number, name in enumerate(own.names):
            array = np.zeros((4, lengths[number % len(lengths)]), np.float32)
            np.save(own.path / "features" / f"{name}.npy", array)

    @pytest.mark.parametrize("pack", [None, "float32"])
    def test_videos_of_different_lengths(self, own, pack):
        self.swap(own, [100, 101, 102])
        with pytest.raises(DataError, match=r"the axes look swapped.*--layout CT \(layout="):
            prepare_csv(own.write(), own.features(pack=pack), own.path / "out")
        report = prepare_csv(own.write(), own.features(layout="CT"), own.path / "out")
        assert report.channels == 4
        spec = own.path / "out" / "dataset.yaml"
        spec.write_text(spec.read_text().replace("layout: CT", "layout: TC"))
        with pytest.raises(DataError, match="every video has 4 rows and another number of"):
            open_dataset(own.path / "out")
        result = validation.validate_dataset(own.path / "out")
        assert [item.check for item in result.errors] == ["channels"]
        assert "`layout: CT` under `feature`" in result.errors[0].message

    def test_videos_of_one_length(self, own):
        self.swap(own, [100])
        with pytest.raises(DataError, match=r"the axes look swapped: .*--layout CT.*If the layout"):
            own.prepare()
        own.column("duration", "20.0")
        with pytest.raises(DataError, match=r"fit better: layout CT \(the axes look swapped"):
            own.prepare()
        prepare_csv(own.write(), own.features(layout="CT"), own.path / "out")
        spec = own.path / "out" / "dataset.yaml"
        spec.write_text(spec.read_text().replace("layout: CT", "layout: TC"))
        result = validation.validate_dataset(own.path / "out")
        timing = next(item for item in result.errors if item.check == "timing")
        assert "the axes look swapped: --layout CT" in timing.message
        assert "layout CT (the axes look swapped): fits 100.0 %" in result.table()

    def test_segments_that_are_to_be_cut_are_no_wrong_layout(self, own):
        self.swap(own, [100])
        report = own.prepare(repairs=Repairs(out_of_range="clamp"))
        assert report.channels == 100

    def test_one_video_alone_is_no_wrong_layout(self, own):
        self.swap(own, [100])
        own.column("duration", lambda number: "" if number == 0 else "20.0")
        with pytest.raises(DataError, match="end after their video; ") as caught:
            own.prepare()
        assert "swapped" not in str(caught.value)

    def test_a_wrong_rate_is_no_wrong_layout(self, own):
        choice = FeatureChoice.at_rate([own.path / "features"], 4 * RATE)
        with pytest.raises(DataError, match="is it right how many there are per") as caught:
            prepare_csv(own.write(), choice, own.path / "out")
        assert "swapped" not in str(caught.value)
        assert "18 of 20 segments end after their video; " in str(caught.value)
        assert "clamp" not in str(caught.value), "which would cut what the rate makes wrong"

    def test_a_folder_without_any_features_of_these_videos(self, own):
        (own.path / "other").mkdir()
        np.save(own.path / "other" / "something.npy", np.zeros((9, 4), np.float32))
        choice = FeatureChoice.at_rate([own.path / "other"], RATE)
        message = r"no annotated video has features there .*it holds, for example, 'something.npy'"
        with pytest.raises(DataError, match=message) as caught:
            prepare_csv(own.write(), choice, own.path / "out")
        assert "leave" not in str(caught.value)


class TestUnits:
    """Times in frames that are taken for seconds, and the reverse."""

    def frames(self, own, rate):
        own.lines = [[n, round(rate * s), round(rate * e), label] for n, s, e, label in own.lines]

    def choice(self, own, fps):
        """The same five rows a second, told by frames."""
        return FeatureChoice([own.path / "features"], stride=fps / 5, frames=fps / 5, fps=fps)

    @pytest.mark.parametrize("durations", [True, False])
    def test_frames_that_are_taken_for_seconds(self, own, durations):
        self.frames(own, 25)
        if durations:
            own.column("duration", 20.0)
        out = own.path / "out"
        said = (
            r"segments\.csv: 20 of 20 segments end after their video, and all times are whole "
            r"numbers\. Frames, not seconds\? Then at 25 frames per second all end within them: "
            r"--unit frames \(unit='frames'\)$"
        )
        with pytest.raises(DataError, match=said):
            prepare_csv(own.write(), self.choice(own, 25), out)
        report = prepare_csv(own.write(), self.choice(own, 25), out, unit="frames")
        assert not any("unit" in line for line in report.lines())
        assert report.out_of_range == 0
        if durations:  # who asks for cuts is told as well
            clamp = Repairs(out_of_range="clamp")
            report = prepare_csv(own.write(), self.choice(own, 25), out, repairs=clamp,
                                 overwrite=True)  # fmt: skip
            assert any("Frames, not seconds?" in line for line in report.lines())

    def test_where_nobody_says_how_many_there_are_per_second(self, own):
        self.frames(own, 30)
        own.column("duration", 20.0)
        said = (
            r"Then at 24\.75 or more frames per second all would end within them: --unit frames "
            r"\(unit='frames'\), with the frames per second of the videos in a column fps$"
        )
        with pytest.raises(DataError, match=said):
            own.prepare()
        own.column("fps", 30)
        with pytest.raises(DataError, match="at 30 frames per second all end within them"):
            own.prepare()
        assert own.prepare(unit="frames").instances == 20

    @pytest.mark.parametrize(
        ("change", "rate"), [(lambda lines: lines[0].__setitem__(1, 0.5), 25), (None, 1000)]
    )
    def test_other_numbers_are_no_frames(self, own, change, rate):
        self.frames(own, rate)
        if change is not None:
            change(own.lines)
        with pytest.raises(DataError) as caught:
            own.prepare()
        assert "--unit" not in str(caught.value)

    def test_a_few_segments_beyond_are_no_frames(self, own):
        self.frames(own, 1)
        own.lines[0][2] = 400
        with pytest.raises(DataError, match="line 2: segment") as caught:
            own.prepare()
        assert "--unit" not in str(caught.value)

    def test_of_a_file_without_lines(self, own):
        database = {
            name: {"duration": 20.0, "annotations": [{"label": "run", "segment": [30 * n, 590]}]}
            for n, name in enumerate(own.names)
        }
        file = self.json(own, database)
        with pytest.raises(DataError, match="divide them by the frames per second, the file must"):
            prepare_json(file, own.features(), own.path / "out")
        assert "Frames, not seconds?" in " ".join(validation.validate(file).table().split())

    def json(self, own, database):
        file = own.path / "annotations.json"
        file.write_text(json.dumps({"database": database}))
        return file

    def test_seconds_that_are_taken_for_frames(self, own):
        choice = self.choice(own, 25)
        report = prepare_csv(own.write(), choice, own.path / "out", unit="frames")
        said = "all segments end in the first 3.3 % of their videos: are the times frames? As"
        assert any(line.startswith(said) for line in report.lines())
        own.lines = own.lines[:2]
        options = {"unit": "frames", "test_share": 0.5, "overwrite": True}
        own.lines += [[own.names[1], *line[1:]] for line in own.lines[:2]]
        slow = self.choice(own, 5)  # four segments may well lie in the first fifth of their videos
        report = prepare_csv(own.write(), slow, own.path / "out", **options)
        assert not any("are the times frames?" in line for line in report.lines())
