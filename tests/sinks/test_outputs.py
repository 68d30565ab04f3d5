# SPDX-License-Identifier: Apache-2.0
import pytest

from transformers_themask.sinks.outputs import Drawing, Outputs
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.videos.frame_folder import FrameFolder

CLASS_NAMES = ["sky", "meadow"]
FILES = {
    "overlay": "a.mp4",
    "labels": "labels",
    "label_track": "a.mkv",
    "statistics": "a.csv",
    "contact_sheet": "a.png",
    "timeline": "b.png",
}


@pytest.fixture
def source(frame_folder):
    return FrameFolder(frame_folder)


def test_outputs_open_a_sink_for_every_path_without_writing(source, tmp_path):
    outputs = Outputs(**{name: tmp_path / "new" / file for name, file in FILES.items()})
    sinks = outputs.open(source, CLASS_NAMES, Drawing("vspw", legend=False))
    assert list(sinks) == list(outputs.paths()) == list(FILES)
    assert isinstance(sinks["overlay"], OverlayVideo)
    assert list(tmp_path.iterdir()) == []
    assert list(Outputs(timeline=tmp_path / "a.svg").open(source, CLASS_NAMES)) == ["timeline"]
    assert Outputs().open(source, CLASS_NAMES) == {}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"timeline": "a.png", "contact_sheet": "./a.png"}, "`--sheet` and `timeline` must differ. Got .*a.png"),
        ({"labels": "maps", "statistics": "maps/x/a.csv"}, "`statistics` must not lie in the folder of `labels`"),
        ({"overlay": "file/a.mp4"}, "`overlay` must lie in a folder that can be written to"),
        ({"contact_sheet": "a.jpg"}, "`--sheet` must be a file whose name ends in .png"),
        ({"labels": "."}, "`labels` must be a new or empty folder"),
    ],
)
def test_outputs_reject_paths_that_cannot_be_written_together(paths, message, source, tmp_path):
    (tmp_path / "file").touch()
    outputs = Outputs(**{name: tmp_path / path for name, path in paths.items()})
    with pytest.raises(ValueError, match=message):
        outputs.open(source, CLASS_NAMES, arguments={"contact_sheet": "--sheet"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
