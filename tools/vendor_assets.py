"""Make rfft/assets/adworld from its sources: furniture icons and panorama strips.

    apt-get download sweethome3d-furniture blender-data && for f in *.deb; do dpkg -x $f deb; done
    npm pack @pmndrs/assets && tar xzf pmndrs-assets-*.tgz
    python tools/vendor_assets.py SOURCE_FOLDER rfft/assets/adworld        (needs OpenEXR from PyPI)

Icons stay as they are (128 px RGBA renders); panoramas are tone-mapped and cut around the horizon.
"""

import base64
import io
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
from PIL import Image

LIBRARIES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0",
    "Scopia": "CC-BY-3.0",
}
LEFT_OUT_CATEGORIES = {"Characters", "Doors and windows", "Staircases"}
BRANDS = (
    r"apple|iphone|ipad|imac|ibook|ford|peugeot|renault|seat leon|chevrolet|smart car|yamaha|vw|"
    r"playstation|mp3|bill \d+"
)
FLAT_OR_MOUNTED = (
    r"plug|switch|socket|crossing|arrow|parking|rails|carpet|rug|bathmat|doormat|hanging|wall |intercom|"
    r"curtain|water heater|air conditioning|radiator|chimney|hood|shower|faucet|lavatory|letters box|entry|"
    r"ceiling|pendant|chandelier|swimming pool|sidewalk|column|railing|socket|smoke|emergency|"
    r"clothes hanger|coathanger|urinal|garage|elevator"
)
STRIP = (512, 128)  # width (360 degrees), height (+45 to -15 degrees of elevation)
PLACES = {  # name of the panorama -> source file, place word of the grammar, split
    "forest_pines": ("pm_forest", "forest", "train"),
    "forest_path": ("bl_forest", "forest", "test"),
    "city_plaza": ("pm_city", "city", "train"),
    "city_dock": ("bl_city", "city", "test"),
    "meadow_park": ("pm_park", "meadow", "train"),
    "meadow_sunrise": ("bl_sunrise", "meadow", "test"),
    "seaside_square": ("pm_sunset", "seaside", "train"),
    "seaside_quay": ("pm_venice", "seaside", "train"),
    "seaside_pier": ("bl_sunset", "seaside", "test"),
    "night_savanna": ("pm_night", "night", "train"),
    "night_field": ("bl_night", "night", "test"),
    "room_apartment": ("pm_apartment", "room", "train"),
    "room_hotel": ("bl_interior", "room", "test"),
    "hall_lobby": ("pm_lobby", "hall", "train"),
    "hall_mall": ("pm_esplanade", "hall", "train"),
    "hall_ballroom": ("pm_hall", "hall", "test"),
    "workshop_lab": ("pm_lab", "workshop", "train"),
    "workshop_machines": ("pm_workshop", "workshop", "train"),
    "workshop_warehouse": ("pm_warehouse", "workshop", "test"),
}


def catalogue(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
    items: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^\s*(\w+)#(\d+)\s*=\s*(.*?)\s*$", text, re.M):
        items.setdefault(int(number), {})[key] = value
    return list(items.values())


def usable(item: dict[str, str]) -> bool:
    name = item["name"].lower()
    height = float(item["height"])
    return (
        item["category"] not in LEFT_OUT_CATEGORIES
        and item.get("doorOrWindow") != "true"
        and float(item.get("elevation", 0)) == 0
        and 10 <= height <= 300
        and not re.search(BRANDS, name)
        and not re.search(FLAT_OR_MOUNTED, name)
    )


def icons(source: Path, out: Path) -> None:
    (out / "icons").mkdir(parents=True, exist_ok=True)
    index = []
    for library, licence in LIBRARIES.items():
        archive = zipfile.ZipFile(next(source.rglob(f"{library}.sh3f")))
        for item in filter(usable, catalogue(archive)):
            stem = f"{library.lower().replace('-', '')}_{Path(item['icon']).stem}"
            image = Image.open(io.BytesIO(archive.read(item["icon"].lstrip("/")))).convert("RGBA")
            box = image.getchannel("A").point(lambda a: 255 * (a > 12)).getbbox()
            if box is None or min(box[2] - box[0], box[3] - box[1]) < 24:
                continue
            image.crop(box).save(out / "icons" / f"{stem}.png", optimize=True)
            index.append(
                {
                    "id": stem,
                    "name": item["name"].lower(),
                    "category": item["category"],
                    "height_cm": float(item["height"]),
                    "library": library,
                    "licence": licence,
                    "creator": item.get("creator", ""),
                }
            )
    (out / "icons.json").write_text(json.dumps(index, indent=0, ensure_ascii=False))
    print(len(index), "icons")


def read_exr(source: Path, name: str) -> np.ndarray:
    origin, stem = name.split("_", 1)
    if origin == "pm":
        packed = next(source.rglob(f"hdri/{stem}.exr.js")).read_text()
        raw = base64.b64decode(re.search(r"base64,([^']+)", packed)[1])  # type: ignore[index]
    else:
        raw = next(source.rglob(f"studiolights/world/{stem}.exr")).read_bytes()
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(raw)
        file.flush()
        channels = OpenEXR.File(file.name).channels()
    pixels = channels.get("RGB", channels.get("RGBA"))
    array = (
        pixels.pixels[..., :3] if pixels is not None else np.stack([channels[c].pixels for c in "RGB"], -1)
    )
    return np.nan_to_num(np.asarray(array, np.float32))


def panoramas(source: Path, out: Path) -> None:
    (out / "places").mkdir(parents=True, exist_ok=True)
    index = []
    for name, (file, place, split) in PLACES.items():
        linear = read_exr(source, file)
        rows = linear.shape[0]
        band = linear[rows // 4 : rows * 7 // 12]  # +45 to -15 degrees
        mid = np.quantile(band.mean(-1), 0.6) + 1e-6
        mapped = (1 - np.exp(-0.8 * np.clip(band, 0, None) / mid)) ** (1 / 2.2)
        if place == "night":
            mapped *= (0.42, 0.46, 0.75)
        # resampled light sources ring: dark or negative pixels around them are filled from their surroundings
        ringing = cv2.dilate((band.min(-1) <= 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        filled = cv2.inpaint((255 * np.clip(mapped, 0, 1)).astype(np.uint8), ringing, 3, cv2.INPAINT_TELEA)
        strip = Image.fromarray(filled).resize(STRIP, Image.Resampling.BILINEAR)
        strip.save(out / "places" / f"{name}.jpg", quality=92)
        index.append({"id": name, "place": place, "split": split})
    (out / "places.json").write_text(json.dumps(index, indent=0))


if __name__ == "__main__":
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    icons(source, out)
    panoramas(source, out)
