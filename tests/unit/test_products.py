"""Products on the canvas: the official zoom, its own pixels kept, and clear words for broken input."""

import json
import os
import random
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfft.data.cutout import edges, load_cutout, paste_back, place_on_canvas, refuse_sliver
from rfft.data.products import read_products
from rfft.data.prompts import COLOURS, read_prompts
from rfft.errors import UserError

LIMIT = 10_000_000
RED, GREEN = (200, 30, 40), (20, 200, 90)


def cutout(height=80, width=60, box=(10, 20, 40, 70)):
    """A red block with a green corner; around it transparency of a colour that must not show."""
    left, top, right, bottom = box
    source = np.zeros((height, width, 4), np.uint8)
    source[..., 2] = 255
    source[top:bottom, left:right] = (*RED, 255)
    source[top : top + 5, left : left + 5] = (*GREEN, 255)
    return source


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def png_header(path, width, height):
    """A PNG that claims a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    return path


class TestPlace:
    def test_the_longer_side_takes_its_share_and_the_product_stands_in_the_middle(self):
        canvas, placement = place_on_canvas(cutout(), size=100, scale=0.7)
        assert placement.source == (10, 20, 40, 70)
        assert placement.canvas == (29, 15, 71, 85)  # 42 x 70: 30 x 50 enlarged by 1.4
        assert canvas.shape == (4, 100, 100)
        assert canvas[3, 50, 50] == 1 and canvas[3, 10, 50] == 0

    @pytest.mark.parametrize("shape", [(80, 60), (60, 300), (800, 800), (1, 1), (3, 500)])
    @pytest.mark.parametrize("scale", [1.0, 0.618, 0.05])
    def test_any_size_and_aspect_fits(self, shape, scale):
        height, width = shape
        canvas, placement = place_on_canvas(cutout(height, width, (0, 0, width, height)), 64, scale)
        x0, y0, x1, y1 = placement.canvas
        assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
        assert max(x1 - x0, y1 - y0) == max(1, round(64 * scale))
        assert canvas.min() >= 0 and canvas.max() <= 1

    def test_hidden_colours_do_not_bleed_in(self):
        canvas, _ = place_on_canvas(cutout(), size=33, scale=0.9)
        assert canvas[2][canvas[3] > 0.05].max() <= 90 / 255 + 0.01  # the hidden blue is 255

    def test_its_own_framing_at_its_own_size_changes_nothing(self):
        source = cutout(64, 64)
        canvas, placement = place_on_canvas(source, 64, scale=None)
        assert placement.canvas == (0, 0, 64, 64)
        assert np.array_equal((canvas * 255).round().byte().permute(1, 2, 0).numpy(), source)

    def test_matting_keeps_the_framing_of_a_product_cut_off_by_the_border(self):
        inside, cut_off = cutout(), cutout(box=(0, 20, 40, 70))
        assert place_on_canvas(inside, 64, 0.7, matting=True)[1] == place_on_canvas(inside, 64, 0.7)[1]
        assert place_on_canvas(cut_off, 64, 0.7, matting=True)[1].source == (0, 0, 60, 80)


class TestPasteBack:
    def test_the_products_own_pixels_are_kept_at_their_own_size(self):
        source = cutout(800, 600, (100, 200, 400, 700))
        _, placement = place_on_canvas(source, 64, 0.7)
        result = paste_back(torch.full((3, 64, 64), 0.5), source, placement, LIMIT)
        assert result.shape == (711, 711, 3)  # 500 px on 45 of 64: 64 * 500 / 45
        for colour in (RED, GREEN):
            own = (source[..., :3] == colour).all(-1) & (source[..., 3] == 255)
            assert (result == colour).all(-1).sum() == own.sum()
        assert (result[0, 0] == 128).all()

    def test_the_product_lies_where_the_generator_saw_it(self):
        source = cutout(800, 600, (100, 200, 400, 700))
        canvas, placement = place_on_canvas(source, 64, 0.7)
        result = paste_back(canvas[:3] * canvas[3:], source, placement, LIMIT)
        small = np.asarray(Image.fromarray(result).resize((64, 64), Image.Resampling.BOX)) / 255
        seen = (canvas[:3] * canvas[3:]).permute(1, 2, 0).numpy()
        assert np.abs(small - seen).mean() < 0.01

    def test_a_half_transparent_product_is_blended(self):
        source = cutout(64, 64, (0, 0, 64, 64))
        source[..., 3] = 128
        _, placement = place_on_canvas(source, 64, None)
        result = paste_back(torch.zeros(3, 64, 64), source, placement, LIMIT)
        assert tuple(result[32, 32]) == (100, 15, 20)

    def test_a_small_product_is_enlarged_rather_than_the_picture_shrunk(self):
        source = cutout(10, 10, (2, 2, 8, 8))
        _, placement = place_on_canvas(source, 64, 0.7)
        assert paste_back(torch.zeros(3, 64, 64), source, placement, LIMIT).shape == (64, 64, 3)

    def test_the_result_stays_within_the_pixel_limit(self):
        source = cutout(1000, 1000, (0, 0, 1000, 1000))
        _, placement = place_on_canvas(source, 64, 0.1)  # at its own resolution this would be 10,667 px wide
        height, width, _ = paste_back(torch.zeros(3, 64, 64), source, placement, 90_000).shape
        assert height == width == 300


def test_edges_are_the_products_outline_in_three_equal_channels():
    canvas, placement = place_on_canvas(cutout(), 64, 0.7)
    found = edges(canvas)
    assert found.shape == (3, 64, 64) and set(found.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    x0, y0, x1, y1 = placement.canvas
    outside = found[0].clone()
    outside[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = 0
    assert outside.sum() == 0 and found[0, (y0 + y1) // 2, x0 - 1 : x0 + 2].any()


class TestLoadCutout:
    def test_palette_and_grey_pictures_with_alpha_are_fine(self, tmp_path):
        picture = Image.fromarray(cutout())
        for mode in ("LA", "P"):
            path = tmp_path / f"{mode}.png"
            (picture.convert(mode) if mode == "LA" else picture.quantize(8)).save(path)
            assert load_cutout(path, None, LIMIT)[30, 20, 3] == 255

    def test_white_to_alpha_is_the_official_rule(self, tmp_path):
        pixels = np.full((4, 4, 3), 255, np.uint8)
        pixels[1, 1], pixels[2, 2] = 254, (255, 255, 0)
        path = save(tmp_path / "a.png", pixels)
        with pytest.raises(UserError, match=r"a.png: image without alpha; .*data.white_to_alpha=true"):
            load_cutout(path, None, LIMIT)
        alpha = load_cutout(path, 255, LIMIT)[..., 3]
        assert alpha[1, 1] == 255 and alpha[2, 2] == 255 and alpha.sum() == 510
        assert load_cutout(path, 250, LIMIT)[1, 1, 3] == 0

    def test_white_goes_where_alpha_cuts_nothing_out(self, tmp_path):
        pixels = np.full((4, 4, 4), 255, np.uint8)
        pixels[1, 1, :3] = 9
        path = save(tmp_path / "a.png", pixels)
        assert load_cutout(path, None, LIMIT)[..., 3].min() == 255  # a product may fill its picture
        assert load_cutout(path, 255, LIMIT)[..., 3].sum() == 255
        pixels[0, 0, 3] = 0
        assert load_cutout(save(path, pixels), 255, LIMIT)[..., 3].sum() == 15 * 255

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path):
        deep = np.full((4, 4), 65535, np.uint16)
        deep[1, 1] = 100 * 256
        Image.fromarray(deep).save(tmp_path / "a.png")
        Image.fromarray(deep).save(tmp_path / "a.tif")
        for name in ("a.png", "a.tif"):
            found = load_cutout(tmp_path / name, 255, LIMIT)
            assert found[1, 1].tolist() == [100, 100, 100, 255] and found[..., 3].sum() == 255

    def test_an_upright_picture_comes_out_of_a_turned_one(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        Image.fromarray(cutout()).save(tmp_path / "a.png", exif=exif)
        assert load_cutout(tmp_path / "a.png", None, LIMIT).shape == (60, 80, 4)

    def test_broken_pictures_are_named(self, tmp_path):
        whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (50, 50, 4), np.uint8))
        (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
        (tmp_path / "text.png").write_text("no picture")
        (tmp_path / "empty.png").write_bytes(b"")
        clear = cutout()
        clear[..., 3] = 100
        save(tmp_path / "clear.png", clear)
        for name, message in {
            "cut": "not a readable image",
            "text": "not a readable image",
            "empty": "not a readable image",
            "absent": "no such image",
            "clear": "fully transparent",
        }.items():
            with pytest.raises(UserError, match=rf"{name}.png: {message}"):
                load_cutout(tmp_path / f"{name}.png", None, LIMIT)

    def test_an_animation_is_no_product(self, tmp_path):
        frames = [Image.fromarray(cutout()), Image.fromarray(cutout(box=(0, 0, 9, 9)))]
        for name in ("a.webp", "a.png", "a.tif"):
            frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
            with pytest.raises(UserError, match=rf"{name}: 2 pictures in one file; save the one"):
                load_cutout(tmp_path / name, None, LIMIT)
        photos = [frame.convert("RGB") for frame in frames]
        photos[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=photos[1:])
        assert load_cutout(tmp_path / "a.jpg", 255, LIMIT).shape == (80, 60, 4)  # as cameras write them

    @pytest.mark.parametrize(("width", "height"), [(1, 1), (2000, 2), (7, 300), (9, 451)])
    def test_slivers_are_no_products(self, width, height):
        def product(width, height):
            source = np.zeros((500, 2100, 4), np.uint8)
            source[40 : 40 + height, 50 : 50 + width] = 255
            return source

        with pytest.raises(UserError, match=rf"a.png: the product is {width} x {height} pixels; .* 8 .* 50 "):
            refuse_sliver(product(width, height), Path("a.png"))
        refuse_sliver(product(8, 400), Path("a.png"))

    @pytest.mark.parametrize(("width", "height"), [(4000, 4000), (12_000, 12_000), (100_000, 100_000)])
    def test_a_decompression_bomb_is_refused_unopened(self, tmp_path, width, height):
        with pytest.raises(UserError, match=r"bomb.png: .* pixels .*than max_pixels=10000000"):
            load_cutout(png_header(tmp_path / "bomb.png", width, height), None, LIMIT)


class TestReadProducts:
    def test_a_folder_gives_its_pictures_in_order(self, tmp_path):
        for name in ("oak_bookcase-2.png", "0.webp", ".hidden.png", "chair.JPG"):
            (tmp_path / name).touch()
        (tmp_path / "chair.txt").write_text("garden chair, about 90 cm tall\n")
        products = read_products(tmp_path)
        assert [(product.id, product.caption) for product in products] == [
            ("0", "product"),
            ("chair", "garden chair, about 90 cm tall"),
            ("oak_bookcase-2", "oak bookcase"),
        ]

    @pytest.mark.parametrize("name", ["crème-brûlée_3", "कुर्सी", "红色 椅子"])
    def test_words_of_a_name_in_any_script(self, tmp_path, name):
        for form in ("NFC", "NFD"):  # macOS writes the second one
            folder = tmp_path / form
            folder.mkdir()
            (folder / unicodedata.normalize(form, f"{name}.png")).touch()
            (product,) = read_products(folder)
            assert unicodedata.normalize("NFC", product.caption) == name.replace("-", " ").removesuffix("_3")

    def test_a_manifest_line_becomes_a_product(self, tmp_path):
        (tmp_path / "a.png").touch()
        row = {
            "id": "x1",
            "image": "a.png",
            "caption": "sofa\u2028",
            "prompt": "in a park",
            "image_scale": 0.5,
        }
        (tmp_path / "m.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
        (product,) = read_products(tmp_path / "m.jsonl")
        assert (product.id, product.image, product.image_scale) == ("x1", tmp_path / "a.png", 0.5)
        assert (product.prompt, product.negative_prompt) == ("in a park", None)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"caption": None}, "m.jsonl:2: caption is missing"),
            ({"caption": 5}, "m.jsonl:2: caption is 5; it must be a text"),
            ({"image": "b.png"}, "m.jsonl:2: image 'b.png' does not exist"),
            ({"image": "../secret.png"}, "leads out of the manifest's folder"),
            ({"image": "/etc/passwd"}, "leads out of the manifest's folder"),
            ({"image": "link.png"}, "leads out of the manifest's folder"),
            ({"id": "../../x"}, "m.jsonl:2: id '../../x' must be fit for a file name"),
            ({"id": "first"}, "two products are called 'first'"),
            ({"image_scale": 1.5}, "m.jsonl:2: image_scale is 1.5; it must be above 0 and at most 1"),
            ({"image_scale": True}, "image_scale is True"),
            ({"image_scale": float("nan")}, "image_scale is nan"),
            ({"sku": 7}, "m.jsonl:2: unknown key 'sku'; known are id, image, caption, prompt, negative_"),
        ],
    )
    def test_a_wrong_manifest_line_is_named(self, tmp_path, change, message):
        folder = tmp_path / "products"
        folder.mkdir()
        (folder / "a.png").touch()
        (tmp_path / "secret.png").touch()
        (folder / "link.png").symlink_to(tmp_path / "secret.png")
        row = {"id": "first", "image": "a.png", "caption": "a chair"}
        lines = [json.dumps(row), json.dumps(row | {"id": "second"} | change)]
        (folder / "m.jsonl").write_text("\n".join(lines))
        with pytest.raises(UserError) as error:
            read_products(folder / "m.jsonl")
        assert message in str(error.value)

    def test_broken_json_is_named_with_its_line(self, tmp_path):
        (tmp_path / "a.png").touch()
        (tmp_path / "m.jsonl").write_text('{"id": "a", "image": "a.png", "caption": "x"}\n{"id": "b",}\n')
        with pytest.raises(UserError, match=r"m.jsonl:2: broken JSON at column 12"):
            read_products(tmp_path / "m.jsonl")

    def test_nothing_there_is_said(self, tmp_path):
        (tmp_path / "m.jsonl").write_text("\n")
        (tmp_path / "bin.jsonl").write_bytes(b"\xff\xfe{")
        (tmp_path / "empty").mkdir()
        for source, message in {
            "empty": "no products here",
            "m.jsonl": "the manifest is empty",
            "gone": "no such folder or manifest",
            "bin.jsonl": "not a UTF-8 text file",
        }.items():
            with pytest.raises(UserError, match=message):
                read_products(tmp_path / source)


class TestReadPrompts:
    def test_the_official_form(self, tmp_path):
        rows = [
            {
                "prompt": "{} walls",
                "negative_prompt": "text",
                "image_scale": 0.78,
                "matting": False,
                "flag": 1,
            },
            {"prompt": "it { stays", "negative_prompt": "", "image_scale": 0.7, "matting": True, "flag": 0},
        ]
        (tmp_path / "p.json").write_text(json.dumps(rows))
        walls, stays = read_prompts(tmp_path / "p.json")
        assert (walls.negative, walls.image_scale, walls.matting) == ("text", 0.78, False)
        assert walls.fill(random.Random(1)) == walls.fill(random.Random(1))
        assert {walls.fill(random.Random(seed)) for seed in range(100)} == {
            f"{colour} walls" for colour in COLOURS
        }
        assert (stays.fill(random.Random(1)), stays.matting) == ("it { stays", True)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[\n {"prompt": "a",}\n]', "p.json:2: broken JSON"),
            ("{}", "expected a JSON list"),
            ("[]", "expected a JSON list"),
            ('["a park"]', "p.json: entry 1: expected an object"),
            ('[{"prompt": "a"}, {"negative_prompt": "b"}]', "p.json: entry 2: prompt is missing"),
            ('[{"prompt": "a", "flag": 2}]', "flag is 2; it must be 0 or 1"),
            ('[{"prompt": "a", "matting": "yes"}]', "matting is 'yes'"),
            ('[{"prompt": "a", "flag": 1}]', "entry 1: flag is 1, but the prompt has no {} for a colour"),
            ('[{"prompt": "a {}"}]', "entry 1: {} in the prompt needs a colour: set flag to 1"),
            (
                '[{"prompt": "a", "negativ": "b"}]',
                "entry 1: unknown key 'negativ'; known are prompt, ",
            ),
            ("[" * 100_000, "broken JSON"),
        ],
    )
    def test_a_wrong_file_is_named(self, tmp_path, text, message):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(UserError) as error:
            read_prompts(tmp_path / "p.json")
        assert message in str(error.value)


@pytest.mark.parametrize("read", [read_prompts, read_products, lambda path: load_cutout(path, None, LIMIT)])
def test_what_never_ends_is_refused(tmp_path, read):
    """Devices and pipes: reading one would hang, or fill the memory."""
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(UserError, match=rf"{path}: (not a regular file|no such)"):
            read(path)


def test_a_caption_has_a_limit(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_text("x" * 10_001)
    with pytest.raises(UserError, match=r"a.txt: more than 10,000 bytes"):
        read_products(tmp_path)
    (tmp_path / "a.txt").unlink()
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a.txt: not a regular file"):
        read_products(tmp_path)
