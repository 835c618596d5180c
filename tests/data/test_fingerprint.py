# SPDX-License-Identifier: Apache-2.0
"""What tells a study that its data has changed."""

import pytest

from tal_fast.data.fingerprint import changed_annotations

VIDEO = {"annotations": "0" * 16, "features": [[8, 1]]}
THEN = {"classes": ["run"], "videos": {"a": VIDEO, "b": VIDEO}}


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        ({"a": VIDEO, "b": VIDEO}, None),
        ({"a": VIDEO}, "video 'b' is no longer there"),
        ({"a": VIDEO, "b": VIDEO, "c": VIDEO, "d": VIDEO}, "video 'c' (and 1 more) is new"),
        (
            {"a": VIDEO, "b": {**VIDEO, "annotations": "1" * 16}},
            "video 'b' has other annotations or features of another shape",
        ),
    ],
)
def test_what_has_changed_is_named(videos, words):
    assert changed_annotations(THEN, {"classes": ["run"], "videos": videos}) == words
