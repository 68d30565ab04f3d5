# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import nn

from themask_command import main
from tiny import tiny_model
from tiny_segmenters import segformer
from transformers_themask import PerFrameConfig, PerFrameForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.drawing.visualization import draw_contours, overlay
from transformers_themask.inference.frame_queries import frame_queries, query_view

SIZE = (64, 96)


@pytest.fixture(scope="module")
def decided():
    """Random two-frame and one-frame models with opinions, enough queries and points, and unchanged frames."""
    processor = THEMaskVideoProcessor(do_resize=False)
    models = {}
    for num_frames in (1, 2):
        model = tiny_model(num_frames=num_frames, num_queries=16, train_num_points=4096)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("class_predictor.weight", "mask_embedder.2.0.weight")):
                    parameter.mul_(10)
        models[num_frames] = model
    cells = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    clip = list(cells.repeat(8, axis=1).repeat(8, axis=2))
    labels = np.random.default_rng(1).integers(0, 4, (2, 4, 6)).repeat(16, axis=1).repeat(16, axis=2)
    labels[:, :8] = 255
    return SimpleNamespace(models=models, processor=processor, clip=clip, labels=labels)


def outputs_of(decided, model, clip):
    with torch.no_grad():
        return model(**decided.processor([clip], return_tensors="pt"))


def matching_costs(config, class_probabilities, mask_logits, labels):
    """Costs `(num_queries, num_classes)` with every pixel for a point, of masks at the size of the labels."""
    logits = mask_logits.double().transpose(0, 1).flatten(1)  # (num_queries, all pixels)
    columns = []
    for label in sorted(set(np.unique(labels)) - {255}):
        target = torch.as_tensor(labels == label).double().flatten()[None].expand_as(logits)
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        scores = logits.sigmoid()
        dice = 1 - (2 * (scores * target).sum(1) + 1) / (scores.sum(1) + target.sum(1) + 1)
        probability = class_probabilities[:, int(label)].double()
        columns.append(config.mask_weight * entropy + config.dice_weight * dice - config.class_weight * probability)
    return torch.stack(columns, 1).numpy()


def test_queries_are_those_of_two_rounds_of_matching_over_all_pixels(decided):
    model = decided.models[2]
    outputs = outputs_of(decided, model, decided.clip)
    probabilities = outputs.class_queries_logits[0].softmax(-1)
    masks = nn.functional.interpolate(
        outputs.frame_masks_queries_logits[0], SIZE, mode="bilinear", align_corners=False
    )  # (num_frames, num_queries, height, width)
    costs = matching_costs(model.config, probabilities, masks, decided.labels)
    expected = {}
    free = np.arange(16)
    for _ in range(2):
        rows, columns = linear_sum_assignment(costs[free])
        for row, column in zip(rows, columns, strict=True):
            expected.setdefault(int(column), []).append(int(free[row]))
        free = np.delete(free, rows)

    queries = frame_queries(model, decided.processor, decided.clip, decided.labels, frame=0)
    assert np.array_equal(queries.target, decided.labels[0])
    found = {entry.class_index: [entry.primary.query_index, entry.secondary.query_index] for entry in queries.classes}
    assert found == expected
    for entry in queries.classes:
        for query in (entry.primary, entry.secondary):
            assert query.class_probability == pytest.approx(float(probabilities[query.query_index, entry.class_index]))
            assert np.allclose(query.mask, masks[0, query.query_index].sigmoid().numpy(), atol=1e-5)


def test_classes_are_ordered_by_their_size_in_the_frame(decided):
    queries = frame_queries(decided.models[2], decided.processor, decided.clip, decided.labels, frame=1)
    sizes = [(decided.labels[1] == entry.class_index).sum() for entry in queries.classes]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 4


def test_without_labels_the_prediction_is_the_target(decided):
    model = decided.models[2]
    (label_maps,) = decided.processor.post_process_semantic_segmentation(
        outputs_of(decided, model, decided.clip), target_sizes=[SIZE]
    )
    queries = frame_queries(model, decided.processor, decided.clip)
    assert np.array_equal(queries.target, label_maps[1].numpy())
    assert {entry.class_index for entry in queries.classes} == set(np.unique(label_maps.numpy()))
    again = frame_queries(model, decided.processor, decided.clip, label_maps.numpy())
    assert [entry[:2] for entry in map(numbers, again.classes)] == [
        entry[:2] for entry in map(numbers, queries.classes)
    ]


def numbers(entry):
    return entry.class_index, *(query and (query.query_index, query.class_probability) for query in entry[1:])


def test_a_one_frame_model_sees_every_frame_of_a_clip_by_itself(decided):
    model, processor = decided.models[1], decided.processor
    of_clip = frame_queries(model, processor, decided.clip, decided.labels, frame=1)
    alone = frame_queries(model, processor, Image.fromarray(decided.clip[1]), decided.labels[1:])
    assert list(map(numbers, of_clip.classes)) == list(map(numbers, alone.classes))
    assert np.array_equal(of_clip.picture, decided.clip[1])


def test_padding_of_the_input_belongs_to_no_mask(decided):
    """A frame that the processor pads gives the same queries and masks as one padded by hand, cut to the frame."""
    model = decided.models[2]
    padding = THEMaskVideoProcessor(do_resize=False, fit="pad")
    clip = [frame[:50, :70] for frame in decided.clip]
    labels = decided.labels[:, :50, :70]
    queries = frame_queries(model, padding, clip, labels)
    outputs = model(**padding([clip], return_tensors="pt"))
    masks = nn.functional.interpolate(
        outputs.frame_masks_queries_logits[0], SIZE, mode="bilinear", align_corners=False
    )
    for entry in queries.classes:
        expected = masks[1, entry.primary.query_index, :50, :70].sigmoid()
        assert np.allclose(entry.primary.mask, expected.detach().numpy(), atol=1e-5)


def test_a_class_goes_without_where_no_query_is_left(decided):
    model = tiny_model(num_queries=5, num_frames=2)
    queries = frame_queries(model, decided.processor, decided.clip, decided.labels)
    assert all(entry.primary is not None for entry in queries.classes)
    assert sum(entry.secondary is not None for entry in queries.classes) == 1
    used = [query.query_index for entry in queries.classes for query in entry[1:] if query is not None]
    assert len(set(used)) == 5
    assert query_view(model, decided.processor, decided.clip, decided.labels).width > 0


def test_view_shows_the_frame_and_its_target(decided):
    frame = decided.clip[0].repeat(5, axis=0).repeat(5, axis=1)  # as wide as a picture of a small view
    labels = decided.labels[:1].repeat(5, axis=1).repeat(5, axis=2)
    processor = THEMaskVideoProcessor(size={"height": 64, "width": 96})
    view = np.asarray(query_view(decided.models[1], processor, frame, labels))
    painted = draw_contours(overlay(frame, labels[0], class_palette(6)), labels[0], class_palette(6))
    for picture in (frame, painted):
        assert contains(view, picture)
    alone = np.asarray(query_view(decided.models[1], processor, frame, labels, class_index=2))
    assert alone.shape[0] < view.shape[0] and contains(alone, frame)
    assert (alone == class_palette(6)[2]).all(axis=2).sum() > 20


def contains(view, picture):
    """Whether a picture stands somewhere in a view, pixel by pixel."""
    height, width = picture.shape[:2]
    starts = np.argwhere((view[: -height + 1, : -width + 1] == picture[0, 0]).all(axis=2))
    return any(np.array_equal(view[top : top + height, left : left + width], picture) for top, left in starts)


def test_view_names_what_it_cannot_show(decided):
    model, processor = decided.models[2], decided.processor
    with pytest.raises(ValueError, match=r"`frame` must be one of the clip's 2. Got 2."):
        query_view(model, processor, decided.clip, frame=2)
    with pytest.raises(ValueError, match=r"shape of the clip, \(2, 64, 96\). Got \(64, 96\)"):
        query_view(model, processor, decided.clip, decided.labels[0])
    with pytest.raises(
        ValueError, match=r"`class_index` must be one of the classes of the clip, .*2 \(LABEL_2\).*. Got 5."
    ):
        query_view(model, processor, decided.clip, decided.labels, class_index=5)
    per_frame = PerFrameForVideoSemanticSegmentation(PerFrameConfig(segmenter_config=segformer(), num_labels=6))
    with pytest.raises(ValueError, match=r"two rounds. Got PerFrameForVideoSemanticSegmentation, which does not"):
        query_view(per_frame, processor, decided.clip)


def test_queries_command_writes_the_view_of_a_frame(segmenter, model_dir, video_path, tmp_path, capsys):
    output = tmp_path / "view.png"
    assert (
        main(["queries", str(model_dir), str(video_path), "--frame", "4", "-o", str(output), "--device", "cpu"]) == 0
    )
    written = np.asarray(Image.open(output))
    assert capsys.readouterr().out == f"{output}: {written.shape[1]}x{written.shape[0]}\n"

    from transformers_themask.videos.video_reader import VideoReader

    frames = [*VideoReader(video_path)]
    assert np.array_equal(written, np.asarray(query_view(segmenter.model, segmenter.processor, frames[3:5])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frame", "11"], "`--frame` must be below the number of frames. Got 11 for 11"),
        (["--class", "sea"], "`--class` must be one of sky, meadow"),
        (["-o", "view.jpg"], "`--output` must be a file whose name ends in .png"),
    ],
)
def test_queries_command_names_what_does_not_fit(model_dir, video_path, tmp_path, capsys, options, message):
    arguments = ["queries", str(model_dir), str(video_path), "-o", str(tmp_path / "view.png"), "--device", "cpu"]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
