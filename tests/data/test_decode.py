"""Every image of the list of hazards, by both decoders."""

from __future__ import annotations

import io
import logging
import pickle
import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from data import decode
from data.decode import ImageDecoder, UnreadableImage, resolve_decoder
from data.errors import DecoderError

BOTH = pytest.mark.parametrize("name", ["torchcodec", "pillow"])


def picture(height: int = 10, width: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def frames(kind: str) -> bytes:
    first = picture()
    return encode(first, kind, save_all=True, append_images=[first.rotate(90, expand=False)])


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in 70 bytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b""
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


READ = {
    "png": encode(picture(), "PNG"),
    "jpeg": encode(picture(), "JPEG"),
    "webp": encode(picture(), "WEBP"),
    "gif": encode(picture().convert("P"), "GIF"),
    "bmp": encode(picture(), "BMP"),
    "tiff": encode(picture(), "TIFF"),
    "ppm": encode(picture(), "PPM"),
    "cmyk": encode(picture().convert("CMYK"), "JPEG"),
    "palette": encode(picture().convert("P"), "PNG"),
    "bits": encode(picture().convert("1"), "PNG"),
    "alpha": encode(picture().convert("RGBA"), "PNG"),
    "grey": encode(picture().convert("L"), "PNG"),
    "grey alpha": encode(picture().convert("LA"), "PNG"),
    "animated gif": frames("GIF"),
    "animated webp": frames("WEBP"),
    "animated png": frames("PNG"),
}


@BOTH
@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_read(name: str, kind: str, channels: int) -> None:
    pixels = ImageDecoder(name, channels)(READ[kind])
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (channels, 10, 7)
    assert pixels.is_contiguous()


@BOTH
@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm", "alpha", "animated png"])
def test_pixels_without_loss(name: str, kind: str) -> None:
    assert np.array_equal(ImageDecoder(name, 3)(READ[kind]).permute(1, 2, 0).numpy(), np.asarray(picture()))


@BOTH
def test_orientation_size_one_and_sixteen_bits(name: str) -> None:
    tag = Image.Exif()
    tag[0x112] = 6  # the camera was turned
    assert tuple(ImageDecoder(name, 3)(encode(picture(), "JPEG", exif=tag)).shape) == (3, 7, 10)
    assert tuple(ImageDecoder(name, 3)(encode(picture(1, 1), "PNG")).shape) == (3, 1, 1)
    deep = np.array([[0, 257, 65535, 32896]], np.uint16)
    wide = encode(Image.fromarray(deep), "PNG")
    assert ImageDecoder(name, 1)(wide).tolist() == [[[0, 1, 255, 128]]]
    assert ImageDecoder(name, 3)(wide).tolist() == [[[0, 1, 255, 128]]] * 3


BROKEN = {
    "zero bytes": (b"", "zero bytes"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "it looks like an HTML page"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "it looks like SVG"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n", "it looks like PostScript"),
    "pdf": (b"%PDF-1.4\n", "it looks like PDF"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "noise": (b"\x01\x02\x03\x04 garbage", "no image"),
    "bomb": (bomb(), "60000 x 60000 pixels are more than|decompression bomb"),
}


@BOTH
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_refused(name: str, kind: str) -> None:
    data, told = BROKEN[kind]
    with pytest.raises(UnreadableImage, match=told):
        ImageDecoder(name, 3)(data)


@BOTH
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("percent", [10, 50, 99])
def test_truncated(name: str, kind: str, percent: int) -> None:
    large = encode(picture(64, 64), kind)
    with pytest.raises(UnreadableImage, match=r"broken or truncated|no image"):
        ImageDecoder(name, 3)(large[: len(large) * percent // 100])


@BOTH
def test_no_byte_can_crash_it(name: str) -> None:
    """Flipped bytes give an image or an UnreadableImage, nothing else."""
    rng = np.random.default_rng(0)
    for kind in ("png", "jpeg", "webp", "gif", "tiff", "bmp"):
        for _ in range(40):
            data = bytearray(READ[kind])
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            told = ""
            try:
                assert ImageDecoder(name, 3)(bytes(data)).ndim == 3
            except UnreadableImage as error:
                told = str(error)
            assert "\n" not in told


def test_the_decoder_that_is_resolved() -> None:
    first = resolve_decoder("auto")
    assert first.name == "torchcodec"
    assert first.note is None
    assert first.identity.startswith("torchcodec 0.")
    assert first.identity.endswith(f"pillow {PIL.__version__}")
    assert resolve_decoder("torchcodec") == first
    assert resolve_decoder("pillow").identity == f"pillow {PIL.__version__}"
    with pytest.raises(DecoderError, match="decoder 'opencv': legal are auto, torchcodec, pillow"):
        resolve_decoder("opencv")


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_missing_or_wrong_torchcodec_is_told(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def build() -> object:
        if fault == "missing":
            raise ImportError("no libtorchcodec here\nand more lines")
        return lambda data, channels: torch.zeros(3, 4, 4, dtype=torch.uint8)

    monkeypatch.setattr(decode, "_torchcodec_decoder", build)
    decode.resolve_decoder.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "rankrun.data"):
            found = resolve_decoder("auto")
            assert resolve_decoder("auto") == found
        assert found.name == "pillow"
        assert found.note is not None
        assert len(caplog.records) == 1, "said once"
        assert "torchcodec does not work here" in caplog.text
        assert "Pillow decodes" in caplog.text
        with pytest.raises(DecoderError, match=r"decoder 'torchcodec' does not work here.*data\.decoder=pillow"):
            resolve_decoder("torchcodec")
    finally:
        decode.resolve_decoder.cache_clear()


def test_a_decoder_travels_by_name() -> None:
    decoder = ImageDecoder("torchcodec", 1)
    decoder(READ["png"])
    assert torch.equal(pickle.loads(pickle.dumps(decoder))(READ["png"]), decoder(READ["png"]))
