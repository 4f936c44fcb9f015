"""Bytes to pixels and ids: exact, or refused by name."""

import io
import zlib

import cv2
import numpy as np
import pytest
from pictures import (
  HTML,
  grey_png,
  jpeg,
  mask,
  palette_png,
  picture,
  pil,
  png,
  with_exif,
)
from PIL import Image

from psp_jax.data import decode
from psp_jax.errors import DataError


def test_an_image_is_rgb():
  red = np.zeros((30, 40, 3), np.uint8)
  red[..., 0] = 255
  assert decode.decode_image(png(red), "x")[3, 4].tolist() == [255, 0, 0]
  r, g, b = decode.decode_image(jpeg(red), "x")[3, 4].tolist()
  assert r > 250 and g < 5 and b < 5


def test_png_pixels_are_exact_and_jpeg_pixels_nearly():
  np.testing.assert_array_equal(
      decode.decode_image(png(picture()), "x"), picture())
  decoded = decode.decode_image(jpeg(), "x").astype(int)
  assert np.abs(decoded - picture()).mean() < 3


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_grey_image_becomes_three_channels(value):
  grey = np.full((7, 9), value, np.uint8)
  decoded = decode.decode_image(png(grey), "x")
  assert decoded.shape == (7, 9, 3) and (decoded == value).all()


def test_an_image_with_transparency_loses_it():
  rgba = np.dstack([picture(), np.full((30, 40), 128, np.uint8)])
  data = cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[1]
  decoded = decode.decode_image(data.tobytes(), "x")
  np.testing.assert_array_equal(decoded, picture())


def test_a_masks_ids_are_exact():
  ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
  decoded = decode.decode_mask(png(ids), "x")
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, ids)


@pytest.mark.parametrize("encode", [jpeg, png])
def test_exif_orientation_turns_neither_image_nor_mask(encode):
  data = with_exif(encode(picture()))
  # cv2 itself would turn it: the tag is in the file and is understood.
  plain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  assert plain.shape == (40, 30, 3)
  np.testing.assert_array_equal(
      decode.decode_image(data, "x"),
      decode.decode_image(encode(picture()), "x"))
  np.testing.assert_array_equal(
      decode.decode_mask(with_exif(png(mask())), "x"), mask())



def test_what_follows_a_jpegs_end_does_not_matter():
  image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
  jpeg = cv2.imencode(".jpg", image)[1].tobytes()
  appended = jpeg + b"\xff\xda movie" * 500
  np.testing.assert_array_equal(
      decode.decode_image(appended, "a"), decode.decode_image(jpeg, "b"))


def test_a_thumbnails_end_is_not_the_pictures():
  """Cut in the scan, refilled with zeros, a thumbnail's marker before it."""
  image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
  jpeg = cv2.imencode(".jpg", image)[1].tobytes()
  thumbnail = b"\xff\xd8 small \xff\xd9"
  segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
  whole = jpeg[:2] + segment + jpeg[2:]
  assert decode.decode_image(whole, "whole").shape == (40, 50, 3)
  cut = whole[:len(whole) // 2] + bytes(len(whole) // 2)
  with pytest.raises(DataError, match="cut"):
    decode.decode_image(cut, "cut")


# ---- Images of all kinds.


def test_cmyk_is_shown_as_pillow_shows_it():
  rgb = np.zeros((32, 48, 3), np.uint8)
  rgb[:, :24], rgb[:, 24:] = (200, 30, 10), (10, 100, 220)
  data = pil(rgb, "JPEG", "CMYK", quality=98)
  decoded = decode.decode_image(data, "x")
  with Image.open(io.BytesIO(data)) as file:
    expected = np.array(file.convert("RGB"))
  assert np.abs(decoded.astype(int) - expected).max() <= 2
  assert decode.peculiarities(data) == ["CMYK, converted to RGB"]


def test_of_16_bits_the_upper_8_are_read():
  values = np.arange(0, 65536, 60, dtype=np.uint16)[:1080].reshape(30, 36)
  decoded = decode.decode_image(grey_png(values, 16), "x")
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, np.dstack([values >> 8] * 3))


@pytest.mark.parametrize("format_, exact", [
    ("PNG", True), ("TIFF", True), ("WEBP", True), ("JPEG", False)])
def test_every_kind_of_file_is_rgb(format_, exact):
  options = {"lossless": True} if format_ == "WEBP" else {}
  decoded = decode.decode_image(pil(picture(), format_, **options), "x")
  if exact:
    np.testing.assert_array_equal(decoded, picture())
  else:
    assert np.abs(decoded.astype(int) - picture()).mean() < 5


@pytest.mark.parametrize("data, words", [
    (pil(picture(), "PNG"), []), (jpeg(), []),
    (pil(mask(), "PNG"), ["grey"]), (pil(picture(), "PNG", "LA"),
                                     ["grey", "transparency"]),
    (pil(picture(), "PNG", "RGBA"), ["transparency"]),
    (grey_png(np.zeros((3, 4), np.uint16), 16), ["16 bits"]),
    (with_exif(jpeg()), ["EXIF"]), (with_exif(png(picture())), ["EXIF"])],
    ids=["png", "jpeg", "grey", "grey alpha", "rgba", "16", "exif jpeg",
         "exif png"])
def test_what_is_peculiar_is_said(data, words):
  said = decode.peculiarities(data)
  assert len(said) == len(words)
  assert all(word in text for word, text in zip(words, said))
  assert decode.is_turned(data) == ("EXIF" in words)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (3, 40_000), (500, 1)])
def test_extreme_sizes_are_read(size):
  rgb = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
  np.testing.assert_array_equal(decode.decode_image(png(rgb), "x"), rgb)
  np.testing.assert_array_equal(
      decode.decode_mask(png(rgb[..., 0].copy()), "x"), rgb[..., 0])


@pytest.mark.parametrize("data, words", [
    (b"", "x.jpg: is empty (0 bytes)"), (HTML, "x.jpg: is a web page"),
    (jpeg()[:-30], "x.jpg: not readable, a JPEG that was cut short"),
    (png(picture())[:-30], "x.jpg: not readable, a PNG that was cut short"),
    (pil(picture(), "TIFF")[:900], "x.jpg: not a readable JPEG, PNG"),
    (b"GARBAGE" * 40, "x.jpg: not a readable JPEG, PNG"),
], ids=["empty", "html", "jpeg", "png", "tiff", "garbage"])
def test_what_is_wrong_with_an_image_is_said(data, words, capfd):
  with pytest.raises(DataError) as error:
    decode.decode_image(data, "x.jpg")
  assert str(error.value).startswith(words)
  assert capfd.readouterr().err == ""  # OpenCV keeps quiet.


def test_a_chunk_longer_than_its_file_is_refused_before_room_is_made():
  palette = io.BytesIO()
  Image.fromarray(picture()).convert("P").save(palette, "PNG")
  data = palette.getvalue()
  at = data.index(b"PLTE") - 4
  data = data[:at] + b"\x7f\xff\xff\xff" + data[at + 4:]
  for decoder in (decode.decode_image, decode.decode_mask,
                  decode.decode_colours, decode.decode_instances):
    with pytest.raises(DataError, match="x: not readable, a PNG that was cut"):
      decoder(data, "x")


# ---- Masks of all kinds.


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_few_bits_hold_ids_not_shades(bits):
  """Readers of photographs would make 255 of a 1."""
  ids = (np.arange(7 * 13).reshape(7, 13) % 2 ** bits).astype(np.uint8)
  np.testing.assert_array_equal(
      decode.decode_mask(grey_png(ids, bits), "x"), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_of_a_palette_the_indices_are_read(bits):
  count = 2 ** bits
  ids = (np.arange(30 * 40).reshape(30, 40) % count).astype(np.uint8)
  colours = np.random.default_rng(0).integers(0, 256, (count, 3))
  data = palette_png(ids, colours, bits)
  assert data[24] == bits and data[25] == 3
  np.testing.assert_array_equal(decode.decode_mask(data, "x"), ids)


@pytest.mark.parametrize("data", [
    pil(mask(), "TIFF"), pil(mask(), "TIFF", "P"),
    pil(np.dstack([mask()] * 3), "WEBP", lossless=True)],
    ids=["tiff", "tiff palette", "webp"])
def test_masks_of_other_formats(data):
  np.testing.assert_array_equal(decode.decode_mask(data, "x"), mask())


def test_a_tiff_of_1_bit_holds_0_and_1():
  ids = mask() % 2
  np.testing.assert_array_equal(
      decode.decode_mask(pil(ids * 255, "TIFF", "1"), "x"), ids)


@pytest.mark.parametrize("data, words", [
    (b"", "is empty"), (HTML, "is a web page"), (jpeg(), "a JPEG, which blurs"),
    (pil(np.dstack([mask()] * 3), "WEBP", quality=80), "a lossy WebP"),
    (png(picture()), "40x30 of RGB colours; a mask is one 8-bit channel"),
    (png(mask().astype(np.uint16)), "40x30 of 16 bits; a mask is one 8-bit"),
    (pil(picture(), "WEBP", lossless=True), "of RGB colours"),
    (pil(picture(), "PNG", "LA"), "of LA colours"),
    (pil(np.zeros((3, 4), np.float32), "TIFF"), "of F colours"),
    (b"GIF89a" + bytes(50), "not a readable PNG, TIFF or WebP mask")])
def test_what_is_wrong_with_a_mask_is_said(data, words):
  with pytest.raises(DataError) as error:
    decode.decode_mask(data, "some mask.png")
  assert str(error.value).startswith("some mask.png: ")
  assert words in str(error.value)


def test_a_colour_mask_keeps_its_colours():
  rgba = np.dstack([picture(), np.full((30, 40), 7, np.uint8)])
  for data in (png(picture()), pil(rgba, "PNG")):
    np.testing.assert_array_equal(
        decode.decode_colours(data, "x"), picture())
    assert decode.has_colours(data) and not decode.has_palette(data)
  indexed = palette_png(mask() % 3, [(9, 8, 7), (1, 2, 3), (4, 5, 6)])
  np.testing.assert_array_equal(
      decode.decode_colours(indexed, "x"),
      np.array([(9, 8, 7), (1, 2, 3), (4, 5, 6)])[mask() % 3])
  assert decode.has_colours(indexed) and decode.has_palette(indexed)
  with pytest.raises(DataError, match="x: compressed with loss"):
    decode.decode_colours(jpeg(), "x")


def test_instance_ids_have_16_bits():
  ids = np.arange(24000, 24000 + 12, dtype=np.uint16).reshape(3, 4)
  decoded = decode.decode_instances(grey_png(ids, 16), "x")
  assert decoded.dtype == np.uint16
  np.testing.assert_array_equal(decoded, ids)
  with pytest.raises(DataError, match="x: not a readable grey PNG"):
    decode.decode_instances(png(picture()), "x")


def test_a_png_that_claims_to_be_enormous_takes_no_time_and_no_memory():
  buffer = io.BytesIO()
  Image.fromarray(np.zeros((4, 6), np.uint8)).save(buffer, "PNG")
  data = bytearray(buffer.getvalue())
  data[16:24] = (30_000).to_bytes(4, "big") * 2
  with pytest.raises(DataError, match="x.png: .* header is damaged"):
    decode.decode_mask(bytes(data), "x.png")
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  with pytest.raises(DataError, match="x.png: 30000x30000, more than"):
    decode.decode_image(bytes(data), "x.png")
