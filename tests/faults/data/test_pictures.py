# SPDX-License-Identifier: Apache-2.0
"""Pictures are read upright, with their depth, without loss of ids and up to a limit, or rejected."""

import os
import struct
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from transformers_themask.data import images
from transformers_themask.data.images import DamagedFileError, image_size, read_frame, read_mask
from transformers_themask.models.frame_arrays import rgb_array
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.videos.frame_folder import FrameFolder

SHOWN = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
# What the file stores, so that it is shown as `SHOWN`: the inverse of what the orientation asks a viewer for.
STORED = {
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.transpose(1, 0, 2),
    6: SHOWN.transpose(1, 0, 2)[::-1],
    7: SHOWN.transpose(1, 0, 2)[::-1, ::-1],
    8: SHOWN.transpose(1, 0, 2)[:, ::-1],
}


def save_turned(path, orientation, array=None, **options):
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = STORED[orientation] if array is None else array
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", STORED)
def test_frames_are_read_as_they_are_shown(orientation, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    png = save_turned(folder / "0.png", orientation)
    with Image.open(png) as image:  # an independent check of the table above
        assert (np.asarray(ImageOps.exif_transpose(image)) == SHOWN).all()
    webp = save_turned(tmp_path / "a.webp", orientation, lossless=True)
    jpeg = save_turned(tmp_path / "a.jpg", orientation, quality=100, subsampling=0)
    for path, tolerance in ((png, 0), (webp, 0), (jpeg, 12)):
        frame = read_frame(path)
        assert frame.shape == SHOWN.shape and image_size(path) == SHOWN.shape[:2]
        assert np.abs(frame.astype(int) - SHOWN).max() <= tolerance
    assert (next(iter(FrameFolder(folder))) == SHOWN).all()


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_label_maps_with_an_orientation_are_rejected(orientation, tmp_path):
    ids = np.zeros((4, 6), np.uint8)
    path = save_turned(tmp_path / "ids.png", orientation, ids)
    for read in (read_mask, partial(image_size, is_label_map=True)):
        with pytest.raises(ValueError, match=rf"must be stored upright. Got the EXIF orientation {orientation}"):
            read(path)
    assert read_mask(save_turned(path, 1, ids)).shape == (4, 6)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_grey_keeps_its_levels(mode, tmp_path):
    levels = np.array([[0, 257, 20_000, 24_000, 65_535]], np.uint16)
    expected = np.round(levels / 257).astype(np.uint8)
    if mode == "I;16":
        Image.fromarray(levels).save(tmp_path / "a.png")
        assert (read_frame(tmp_path / "a.png") == expected[:, :, None]).all()
    image = Image.fromarray(levels.astype("<u2" if mode == "I;16" else ">u2"))
    assert image.mode == mode and (rgb_array(image) == expected[:, :, None]).all()


def test_16_bit_pgm_keeps_its_levels(tmp_path):
    levels = np.array([[0, 20_000, 65_535]], np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + levels.astype(">u2").tobytes())
    assert read_frame(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 78, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pictures_of_32_bits_are_rejected_by_every_door(dtype, tmp_path):
    image = Image.fromarray(np.ones((8, 8), dtype))
    image.save(tmp_path / "a.tiff")
    for read in (
        lambda: read_frame(tmp_path / "a.tiff"),
        lambda: rgb_array(image),
        lambda: VideoSegmentationProcessor()([[image]]),
    ):
        with pytest.raises(ValueError, match="must have 8 or 16 bits per channel"):
            read()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_8_bit_pictures_of_every_mode_are_read_as_pillow_shows_them(mode):
    image = Image.fromarray(SHOWN).convert("RGB")
    image = image.convert("P").convert(mode) if mode == "PA" else image.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert (rgb_array(image) == expected).all()
    processor = VideoSegmentationProcessor(do_resize=False, do_rescale=False, do_normalize=False, size_divisor=1)
    pixels = processor([[image]], return_tensors="pt")["pixel_values_videos"]
    assert (pixels[0, 0].permute(1, 2, 0).numpy() == expected).all()


def test_lossy_label_maps_are_rejected_by_content(tmp_path):
    ids = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for name, image_format in (("a.png", "JPEG"), ("b.png", "JPEG2000")):
        ids.save(tmp_path / name, format=image_format)
        with pytest.raises(ValueError, match=r"must be stored without loss"):
            read_mask(tmp_path / name)


@pytest.mark.parametrize("bits", [1, 2, 4, 16])
def test_grey_label_maps_of_other_depths_are_rejected_and_palettes_read(bits, tmp_path):
    ids = np.array([[0, 1, 1, 0]], np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    if bits < 8:
        palette.save(tmp_path / "palette.png", bits=bits)
        assert (read_mask(tmp_path / "palette.png") == ids).all()
    path = tmp_path / "grey.png"
    path.write_bytes(grey_png(ids, bits))
    with pytest.raises(ValueError, match="must be an 8-bit single-channel image of ids"):
        read_mask(path)


def grey_png(values, bits):
    """A PNG of grey levels with some bits per pixel, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    rows = b""
    for row in values:
        digits = "".join(format(value, f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, content) for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def test_pictures_beyond_the_limit_and_pipes_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    Image.new("RGB", (10, 10)).save(tmp_path / "small.png")
    assert read_frame(tmp_path / "small.png").shape == (10, 10, 3)
    Image.new("L", (10, 11)).save(tmp_path / "large.gif", save_all=True, append_images=[Image.new("L", (10, 11), 1)])
    os.mkfifo(tmp_path / "pipe.png")
    for name, error in (("large.gif", DamagedFileError), ("pipe.png", OSError)):
        for read in (read_frame, read_mask, image_size):
            with pytest.raises(error, match=name):
                read(tmp_path / name)


def test_tensors_and_arrays_keep_their_rule():
    frame = torch.from_numpy(SHOWN).permute(2, 0, 1)
    assert (rgb_array(frame) == SHOWN).all() and rgb_array(SHOWN) is SHOWN
    for wrong in (SHOWN / 255, SHOWN.astype(np.uint16), SHOWN[..., 0], np.zeros((4, 6, 4), np.uint8), None):
        with pytest.raises(ValueError, match="A frame must be"):
            rgb_array(wrong)
