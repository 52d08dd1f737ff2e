"""AdWorld draws what its labels say, the same for the same seed, and keeps the splits apart."""

from itertools import combinations

import numpy as np
import pytest
import torch

from rfft.adworld import assets, grammar, styles
from rfft.adworld.draw import contact_sheet, scene
from rfft.adworld.products import draw_samples
from rfft.adworld.props import asked_heights
from rfft.adworld.variety import nameless, varied
from rfft.types import LABELS


def test_a_scene_depends_on_seed_and_index_alone():
    first = scene(3, 17, "train")
    scene(3, 18, "train")
    again = scene(3, 17, "train")
    assert np.array_equal(first.image, again.image)
    assert (first.prompt, first.label) == (again.prompt, again.label)
    assert not np.array_equal(first.image, scene(4, 17, "train").image)


def test_of_resized_products_only_the_caption_tells_the_size():
    """Each product is said to be of many sizes, props match."""
    stated: dict[str, set[int]] = {}
    for i in range(600):
        drawn = scene(1, i, "rfnet")
        stated.setdefault(drawn.caption.split(",")[0], set()).add(grammar.stated_cm(drawn.caption))
    often = [sizes for sizes in stated.values() if len(sizes) > 1]
    assert max(max(sizes) / min(sizes) for sizes in often) > 4


def test_a_caption_states_the_rounded_centimetres():
    assert grammar.stated_cm(grammar.caption("lamp of 2 parts", 118.0)) == 120


def test_products_belong_to_one_split():
    """By name, by id and by pixels: no split sees a product of another one under another name."""
    icons = [assets.products(split) for split in assets.SPLITS]
    for identity in (lambda icon: icon.name, lambda icon: icon.id, lambda icon: icon.rgba.tobytes()):
        splits = [set(map(identity, split)) for split in icons]
        assert not any(a & b for a, b in combinations(splits, 2))
        assert min(len(split) for split in splits) >= 20
    assert not set(assets.PROPS) & {icon.name for split in icons for icon in split}


def test_places_belong_to_one_split():
    """No column of 16 pixels of a panorama is seen in two splits."""
    seen = []
    for split in assets.SPLITS:
        panoramas = assets.panoramas(split)
        assert set(panoramas) == set(assets.PLACES) - {"studio"}
        strips = [strip for place in panoramas.values() for strip in place]
        seen.append({s[:, x : x + 16].tobytes() for s in strips for x in range(s.shape[1] - 15)})
    assert not any(a & b for a, b in combinations(seen, 2))


def test_validation_places_are_other_parts_of_the_training_panoramas():
    for place, strips in assets.panoramas("train").items():
        for train, val in zip(strips, assets.panoramas("val")[place], strict=True):
            assert train.shape[1] == 2 * 426 and val.shape[1] == 2 * 86  # of 512 columns, mirrored


def test_about_half_of_the_scenes_are_available():
    labels = [scene(0, i, "train").label for i in range(400)]
    assert 0.43 < labels.count("available") / 400 < 0.57
    assert set(labels) == set(LABELS)


@pytest.mark.parametrize("label", LABELS)
def test_product_pixels_survive_whatever_is_painted_around_them(label):
    drawn = scene(5, 0, "val", label)
    solid = drawn.product[..., 3] == 255
    assert solid.any()
    assert np.abs(drawn.image[solid].astype(int) - drawn.product[solid][:, :3]).max() <= 1


def test_an_available_product_stands_on_ground_and_a_floating_one_does_not():
    """Just below the base the known depth is that of near ground, or that of the far place."""

    def below(label: str) -> list[float]:
        values = []
        for i in range(60):
            drawn = scene(6, i, "train", label)
            base = np.nonzero(drawn.product[..., 3].max(axis=1))[0].max()
            columns = np.nonzero(drawn.product[..., 3].max(axis=0))[0]
            values.append(float(np.median(drawn.depth[min(base + 2, 63), columns])))
        return values

    assert min(below("available")) > 90
    far = sum(value < 40 for value in below("space_mismatch"))
    assert far >= 15  # the other half hovers over ground, above its shadow


def test_saliency_shows_grown_legs_beyond_the_product():
    beyond = []
    for i in range(40):
        drawn = scene(7, i, "train", "shape_hallucination")
        beyond.append(int(((drawn.saliency > 200) & (drawn.product[..., 3] == 0)).sum()))
    assert np.median(beyond) > 10


def test_props_are_in_true_centimetres():
    icon = next(icon for icon in assets.products("train") if 70 < icon.height_cm < 90)
    heights = asked_heights(icon, drawn_height=30)
    assert heights["crate"] == pytest.approx(59 * 30 / icon.height_cm)
    assert all(8 <= px <= 32 for px in heights.values())


def test_captions_round_heights_on_a_logarithmic_scale():
    assert grammar.caption("stool", 46.0) == "stool, about 50 cm tall"
    assert grammar.round_cm(11.0) == 12  # 11 / 10 is further than 12 / 11
    assert grammar.round_cm(500.0) == 300


def test_samples_repeat_and_share_a_products_canvas():
    first, again = draw_samples("test", 5, 2, seed=1), draw_samples("test", 5, 2, seed=1)
    assert [sample.prompt for sample in first] == [sample.prompt for sample in again]
    assert len({sample.id for sample in first}) == 10
    assert first[0].product == first[1].product != first[2].product
    assert torch.equal(first[0].canvas, first[1].canvas)
    assert first[0].canvas.shape == (4, 64, 64) and first[0].canvas.max() <= 1
    for sample in first:
        light = grammar.LIGHT_WORDS[sample.attributes["light"]]
        assert any(words in sample.prompt for words in light)


def test_styles_are_held_out():
    """What val and test draw in their own way, no network has learned from: nor each other's."""
    learned = [styles.RFNET, styles.JUDGE, styles.MONITOR]
    for part in ("ground", "shadow", "hide", "part"):
        ways = [set(style[part]) for style in (*learned, styles.PLAIN)]
        assert not set.union(*ways) & (set(styles.VAL[part]) | set(styles.TEST[part]))
        assert not set(styles.VAL[part]) & set(styles.TEST[part])
    names = [{icon.name for icon in styles.SOURCES[name].icons()} for name in ("rfnet", "judge", "test")]
    assert names[0] != names[1] and not names[2] & (names[0] | names[1])


@pytest.mark.parametrize("source", ["rfnet", "judge", "monitor", "val_styles", "test_styles"])
def test_all_styles_draw_what_the_label_says(source):
    """The product's own pixels are kept, ground lies below it unless it floats, parts grow beyond it."""
    for label in LABELS:
        for i in range(12):
            drawn = scene(8, i, source, label)
            solid = drawn.product[..., 3] == 255
            off = np.abs(drawn.image[solid].astype(int) - drawn.product[solid][:, :3])
            assert off.max(initial=0) <= 1  # some products are translucent all over
            columns = np.nonzero(drawn.product[..., 3].max(axis=0))[0]
            base = np.nonzero(drawn.product[..., 3].max(axis=1))[0].max()
            if label == "available":
                assert np.median(drawn.depth[min(base + 2, 63), columns]) > 90
            if label == "shape_hallucination":
                assert ((drawn.saliency > 200) & (drawn.product[..., 3] == 0)).sum() > 3
            if label == "size_mismatch":
                assert drawn.attributes["prop"] != "none"


def test_contact_sheet_has_a_row_for_each_class():
    sheet = contact_sheet(0, "train", columns=3, zoom=1)
    assert sheet.shape == (5 * (64 + 22), 3 * 64, 3)
    for row, label in enumerate(LABELS):
        last = scene(0, 1000 * row + 2, "train", label).image
        assert np.array_equal(sheet[row * 86 + 22 : (row + 1) * 86, 128:], last)


def test_training_icons_vary_and_keep_name_and_height():
    icon = assets.products("train")[0]
    rng = np.random.default_rng(0)
    drawn = [varied(icon, rng) for _ in range(8)]
    assert {(d.name, d.height_cm) for d in drawn} == {(icon.name, icon.height_cm)}
    assert len({d.rgba.tobytes() for d in drawn}) > 4
    assert all(d.rgba.shape[0] == icon.rgba.shape[0] for d in drawn)


def test_a_nameless_thing_is_of_a_height_asked_for():
    rng = np.random.default_rng(1)
    things = [nameless(10, 20, rng) for _ in range(20)]
    assert all(10 <= thing.height_cm <= 20 and (thing.rgba[..., 3] == 255).any() for thing in things)
