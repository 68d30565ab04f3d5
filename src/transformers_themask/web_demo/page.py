# SPDX-License-Identifier: Apache-2.0
"""The page: its components, and what its buttons do."""

import threading
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from transformers_themask.drawing.visualization import draw_contours, overlay
from transformers_themask.inference.loading import label_names
from transformers_themask.models.protocols import VideoModel, VideoProcessor
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.videos.frame_source import open_frame_source

from .job import Coloring, Progress, Results, SegmentationJob
from .share_charts import legend_html, mean_shares, timeline_html
from .stage import INVITATION, WAITING, message_html, notice_html, progress_html

UPDATE_SECONDS = 0.5
# Every ten minutes, files of visitors that are older than an hour are removed.
DELETE_CACHE = (600, 3600)
MAX_WAITING = 20
# On a phone the result lies below what can be seen.
SHOW_RESULT = """() => {
  document.getElementById("result").scrollIntoView({behavior: "smooth", block: "nearest"});
  return [];
}"""
MODE_LABELS = {
    "contiguous": "Clip by clip",
    "interleaved": "Clips of every third frame",
    "sliding": "Each frame with those before it",
    "recurrent": "From frame to frame",
}
PALETTE_LABELS = {"default": "Standard", "vspw": "VSPW", "colour-blind": "Colour-blind safe"}
FILE_LABELS = {
    "overlay": "Overlay video",
    "label_track": "Label track",
    "statistics": "Statistics",
    "timeline": "Plot",
}


class Page:
    """The page for one model, in `blocks`; `folder` holds the files of running jobs."""

    def __init__(self, model: VideoModel, processor: VideoProcessor, model_name: str, folder: Path):
        self.model, self.processor, self.model_name, self.folder = model, processor, model_name, folder
        self.class_names = label_names(model.config)
        # Set when a visitor wants no more frames; by session.
        self._stopping: dict[str | None, threading.Event] = {}
        with gr.Blocks(title="Video segmentation", analytics_enabled=False, delete_cache=DELETE_CACHE) as self.blocks:
            self._lay_out()
            self._connect()
        self.blocks.queue(max_size=MAX_WAITING)

    def _lay_out(self) -> None:
        gr.HTML(self._header_html(), elem_id="header")
        with gr.Row(elem_id="columns"):
            with gr.Column(elem_id="controls", scale=1, min_width=300):
                self._lay_out_controls()
            with gr.Column(elem_id="result", scale=3, min_width=320):
                self._lay_out_result()

    def _header_html(self) -> str:
        facts = [self.model_name, f"{len(self.class_names)} classes", f"runs on {self.model.device.type.upper()}"]
        chips = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
        return (
            "<header><div><h1>Video segmentation</h1>"
            "<p>Every pixel of every frame gets the name of what it shows.</p></div>"
            f'<ul class="chips">{chips}</ul></header>'
        )

    def _lay_out_controls(self) -> None:
        modes = [(MODE_LABELS[mode], mode) for mode in self.model.stream_modes]
        palettes = [(label, name) for name, label in PALETTE_LABELS.items()]
        self.video = gr.Video(
            sources=["upload", "webcam"],
            label="Video",
            include_audio=True,  # leaving the sound out would need FFmpeg's program
            webcam_options=gr.WebcamOptions(mirror=False),
            height=250,
            elem_id="video",
        )
        # Modes only differ in the frames that are seen together.
        has_choice = len(modes) > 1 and self.model.config.num_frames > 1
        self.mode = gr.Radio(modes, value=modes[0][1], label="How frames help each other", visible=has_choice)
        self.palette = gr.Radio(palettes, value=palettes[0][1], label="Colours")
        self.alpha = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity of the colours")
        self.start = gr.Button("Segment", variant="primary", size="lg", elem_id="start")
        self.stop = gr.Button("Stop here", size="lg", visible=False, elem_id="stop")

    def _lay_out_result(self) -> None:
        self.notice = gr.HTML(visible=False, label="Notice", elem_id="notice")
        with gr.Row(elem_id="picture-and-legend"):
            with gr.Column(scale=3, min_width=320):
                self.stage = gr.HTML(INVITATION, label="Progress", elem_id="stage")
                self.overlay = gr.Video(
                    visible=False,
                    autoplay=True,
                    loop=True,
                    label="Overlay",
                    show_label=False,
                    buttons=[],
                    elem_id="overlay",
                )
            with gr.Column(scale=1, min_width=220, elem_id="legend-column"):
                self.legend = gr.HTML(visible=False, label="Legend", elem_id="legend")
        self.timeline = gr.HTML(visible=False, label="Timeline", elem_id="timeline")
        with gr.Row(visible=False, elem_id="downloads") as self.downloads:
            gr.HTML("<h2>Download</h2>")
            self.saves = {kind: gr.DownloadButton(label) for kind, label in FILE_LABELS.items()}

    def _connect(self) -> None:
        shown = [self.notice, self.stage, self.overlay, self.legend, self.timeline]
        shown += [self.downloads, *self.saves.values()]
        buttons = [self.start, self.stop]
        unseen: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        announced = self.start.click(self._announce, outputs=[*buttons, *shown], js=SHOW_RESULT, **unseen)
        segmented = announced.then(
            self.segment,
            inputs=[self.video, self.mode, self.palette, self.alpha],
            outputs=shown,
            show_progress="hidden",
            concurrency_limit=1,
            api_name="segment",
        )
        # After an error Gradio's page calls the one, and otherwise the other.
        for ended in (segmented.then, segmented.failure):
            ended(self._offer_start, outputs=buttons, **unseen)
        self.stop.click(self._stop, **unseen)

    def _announce(self, request: gr.Request) -> dict[Any, Any]:
        """Clear the page for a new result."""
        self._stopping[request.session_hash] = threading.Event()
        hidden = (self.notice, self.overlay, self.legend, self.timeline, self.downloads)
        return {
            self.start: gr.Button(visible=False),
            self.stop: gr.Button(visible=True),
            self.stage: gr.HTML(WAITING, visible=True),
            **{component: gr.update(visible=False) for component in hidden},
        }

    def _offer_start(self) -> dict[Any, Any]:
        return {self.start: gr.Button(visible=True), self.stop: gr.Button(visible=False)}

    def _stop(self, request: gr.Request) -> None:
        if stopping := self._stopping.get(request.session_hash):
            stopping.set()

    def stop_all(self) -> None:
        """End all jobs with the frames that are being read."""
        for stopping in list(self._stopping.values()):
            stopping.set()

    def segment(
        self, video: str | None, mode: str, palette: str, alpha: float, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """Segment an uploaded video and yield updates of the page; errors are shown in one line."""
        stopping = self._stopping.setdefault(request.session_hash, threading.Event())
        try:
            if video is None:
                raise ValueError("Upload a video or record one first.")
            session = self.model.stream(self.processor, mode)
            coloring = Coloring(self.class_names, palette, alpha)
            with SegmentationJob(session, open_frame_source(video), coloring, self.folder, stopping) as job:
                for progress in job.updates(UPDATE_SECONDS):
                    if progress.latest is not None:
                        yield self._progress(progress, progress.latest, coloring)
                yield self._end(job, video)
        except Exception as error:
            is_expected = isinstance(error, (ValueError, OSError))
            sentence = _sentence(error, video) if is_expected else "The program failed; its log says why."
            yield self._message("This did not work", sentence)
            raise gr.Error(sentence, print_exception=not is_expected) from error
        finally:
            self._stopping.pop(request.session_hash, None)

    def _progress(self, progress: Progress, frame: LabelledFrame, coloring: Coloring) -> dict[Any, Any]:
        picture = overlay(frame.picture, frame.label_map, coloring.palette, coloring.alpha)
        picture = draw_contours(picture, frame.label_map, coloring.palette)
        num_classes = len(self.class_names)
        pixels = np.bincount(frame.label_map.ravel(), minlength=num_classes)[:num_classes]
        seconds = time.monotonic() - progress.started
        return {
            self.stage: progress_html(picture, frame.index + 1, progress.num_expected, seconds),
            self.legend: self._legend("In this picture", coloring, pixels / frame.label_map.size),
        }

    def _end(self, job: SegmentationJob, video: str) -> dict[Any, Any]:
        results = job.results()
        if results is None:
            return self._message("Stopped", "There was no frame yet.")
        notice = ""
        if results.damage:
            notice = f"Only a part of this video could be read. {_sentence(results.damage, video)}"
            gr.Warning(notice)
        elif job.stopping.is_set():
            notice = "You stopped here: this is the part up to that moment."
        return self._result(results, job.coloring, notice)

    def _result(self, results: Results, coloring: Coloring, notice: str) -> dict[Any, Any]:
        edges, shares = results.timeline.shares()
        shares = shares[:, : len(self.class_names)]  # without void
        extent = "In this part" if notice else "In the whole video"
        timeline = timeline_html(self.class_names, coloring.palette, edges, shares)
        return {
            self.notice: gr.HTML(notice_html(notice), visible=bool(notice)),
            self.stage: gr.HTML(visible=False),
            self.overlay: gr.Video(str(results.files["overlay"]), visible=True),
            self.legend: self._legend(extent, coloring, mean_shares(edges, shares)),
            self.timeline: gr.HTML(f"<h2>Class shares over time</h2>{timeline}", visible=True),
            self.downloads: gr.Row(visible=True),
            **{self.saves[kind]: gr.DownloadButton(value=str(path)) for kind, path in results.files.items()},
        }

    def _legend(self, title: str, coloring: Coloring, shares: np.ndarray) -> gr.HTML:
        return gr.HTML(f"<h2>{title}</h2>{legend_html(self.class_names, coloring.palette, shares)}", visible=True)

    def _message(self, title: str, sentence: str) -> dict[Any, Any]:
        return {self.stage: gr.HTML(message_html(title, sentence), visible=True), self.legend: gr.HTML(visible=False)}


def _sentence(problem: Exception | str, video: str | None) -> str:
    """A problem in the words of the page, and with the name that the visitor gave the file."""
    sentence = " ".join(str(problem).split()).replace("`path` must name", "The upload must be")
    return sentence if video is None else sentence.replace(video, Path(video).name)
