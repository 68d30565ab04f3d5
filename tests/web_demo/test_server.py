# SPDX-License-Identifier: Apache-2.0
import os

import pytest
from gradio_client import Client, handle_file

from transformers_themask.web_demo.server import serving


def gradio_variables():
    return {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}


@pytest.mark.slow
def test_huge_upload_is_rejected_and_the_server_leaves_no_files(segmenter, clip, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = gradio_variables()
    with serving(segmenter.model, segmenter.processor, "tiny", max_file_size="1kb") as page:
        with pytest.raises(ValueError, match=r"clip.mp4 exceeds the maximum file size"):
            Client(page.local_url, verbose=False).predict(handle_file(clip), api_name="/segment")
        (folder,) = tmp_path.glob("themask-web-*")
    assert not folder.exists() and gradio_variables() == before
