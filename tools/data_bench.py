"""What data cost at the sizes that shops have: time to the first step, memory, waiting; figures as JSON.

    python tools/data_bench.py start FOLDER [--products 100000] [--steps 3]   rfft train configs/tiny.yaml
    python tools/data_bench.py encode FOLDER [--products 1000] [--real 12]    SD 1.5's VAE and text at 512 px
    python tools/data_bench.py manifest FOLDER [--products 1000000]           the listing of a manifest
    python tools/data_bench.py pictures FOLDER [--products 2000]            an evaluation's pictures of 512 px

FOLDER is filled once, and used again by the next call: its second start has a warm cache.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SHAPES = 100  # pictures that are drawn; the others differ from one of them in a comment of the file
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["start", "encode", "manifest", "pictures"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--products", type=int)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--real", type=int, default=12)
    chosen = parser.parse_args()
    usual = {"start": 100_000, "encode": 1000, "manifest": 1_000_000, "pictures": 2000}
    count = chosen.products or usual[chosen.what]
    chosen.folder.mkdir(parents=True, exist_ok=True)
    os.environ["RFFT_CACHE"] = str(chosen.folder / "cache")
    if chosen.what == "start":
        found = start(chosen.folder, count, chosen.steps)
    elif chosen.what == "encode":
        found = encode(chosen.folder, count, chosen.real)
    elif chosen.what == "pictures":
        found = pictures(chosen.folder, count)
    else:
        found = manifest(chosen.folder, count)
    where = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": [round(x, 1) for x in os.getloadavg()],
    }
    print(json.dumps({"what": chosen.what, "products": count} | found | where, indent=1))


# ---- the start of a training ----


def start(folder: Path, count: int, steps: int) -> dict[str, Any]:
    """Start a training twice, with an empty cache and with a full one; before it nothing is evaluated."""
    products = cutouts(folder / f"products-{count}", count, side=256)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    plain = ["evaluate.enabled=false", "trainer.sample_every=0", f"trainer.steps={steps}"]
    own = [f"data.products={products}", f"data.prompts={prompts(folder)}"]
    first = train(folder, [*own, *plain])
    return {"first start": first, "second start": train(folder, [*own, *plain])}


def train(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Run `rfft train` in a new folder; seconds to the first step, shares of waiting, memory."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-m", "rfft", "train", str(ROOT / "configs/tiny.yaml"), f"run.out={out}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        began = time.time()
        process = subprocess.Popen([*command, *overrides], env=environment, stderr=subprocess.PIPE, text=True)
        metrics, first = Path(out) / "tiny/metrics.jsonl", None
        while process.poll() is None:
            if first is None and metrics.exists() and metrics.stat().st_size:
                first = time.time()
            time.sleep(0.05)
        if process.returncode or first is None:
            raise SystemExit(process.stderr.read() if process.stderr else "")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    trained = [row for row in rows if "perf/step_seconds" in row]
    return {
        "seconds to the first step": round(first - began - trained[0]["perf/step_seconds"], 1),
        "seconds of a step": round(float(np.median([row["perf/step_seconds"] for row in trained])), 2),
        "share of data in each step": [round(row["perf/data_share"], 4) for row in trained],
        "peak memory, GB": round(max(row["perf/memory_gib"] for row in trained) * 2**30 / 1e9, 2),
    }


# ---- encoding at the width of SD 1.5 ----


def encode(folder: Path, count: int, real: int) -> dict[str, Any]:
    """Read products of 800 px as a training at 512 px does, epoch by epoch; U-Net and ControlNet are thin.

    The first `real` products go through a VAE of SD 1.5's width, all of them through a thin one: on two cores
    the former takes seconds a picture. What is in memory is of the same shapes for both.
    """
    sys.path.insert(0, str(ROOT))
    products = cutouts(folder / f"photos-{count}", count, side=800)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return {
        "real VAE": encoded(folder, products, real, thin=False),
        "thin VAE": encoded(folder, products, count, thin=True),
        "thin VAE, warm": encoded(folder, products, count, thin=True),
    }


def encoded(folder: Path, products: Path, count: int, thin: bool) -> dict[str, Any]:
    """Measure in a process of its own, as peaks of memory stay."""
    arguments = f"{str(folder)!r}, {str(products)!r}, {count}, {thin}"
    program = f"from tools.data_bench import measure_encoding; measure_encoding({arguments})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_encoding(folder: str, products: str, count: int, thin: bool) -> None:
    import torch

    from rfft import build
    from rfft.config.load import load_config
    from rfft.models.bundle import Bundle
    from rfft.models.families.sd import StableDiffusion
    from rfft.utils.log import messages
    from tests import shapes

    pipe = shapes.pipeline("sd15")
    if thin:
        settings = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    else:
        settings = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipe.vae = type(pipe.vae)(latent_channels=4, scaling_factor=0.18215, **settings, **blocks)
    pipe.vae_scale_factor = 8
    bundle = Bundle(StableDiffusion(pipe))
    own = [f"data.products={products}", f"data.prompts={prompts(Path(folder))}", f"data.count={count}"]
    config = load_config("tiny", [*own, "data.image_size=512", "evaluate.enabled=false"])
    messages().quiet = True
    before, began = resident(), time.time()
    samples = build.build_samples(config, "train")
    listed = time.time()
    conditions = build.build_conditions(config, bundle, samples)
    batches = [list(range(first, min(first + 4, count))) for first in range(0, count, 4)]
    first_batches, peak = 0, 0
    for i, numbers in enumerate(batches):
        conditions.index(numbers).to("cpu", torch.float32)
        conditions.prefetch(batches[i + 1 : i + 3])
        if i == 1:
            first_batches = peak_memory()
        peak = max(peak, resident())
    found = {
        "products": count,
        "seconds to list and look": round(listed - began, 2),
        "ms a product": round(1000 * (time.time() - listed) / count, 1),
        "MB beyond the weights, after two batches": round((first_batches - before) / 1e6),
        "MB beyond the weights, at most": round((peak_memory() - before) / 1e6),
    }
    print(json.dumps(found))


# ---- the listing of a manifest ----


def manifest(folder: Path, count: int) -> dict[str, Any]:
    """List a manifest of `count` products that share a few pictures; memory beyond the imports."""
    sys.path.insert(0, str(ROOT))
    from rfft.data.products import read_products

    cutouts(folder / "few", 10, side=256)
    file = folder / f"manifest-{count}.jsonl"
    with file.open("w") as lines:
        for i in range(count):
            row = {"id": f"sku-{i:07}", "image": f"few/{i % 10:06}.png", "caption": f"oak stool number {i}"}
            lines.write(json.dumps(row | {"prompt": f"in a park, number {i}"}) + "\n")
    before, began = peak_memory(), time.time()
    products = read_products(file)
    seconds = time.time() - began
    assert products[count - 1].caption == f"oak stool number {count - 1}"
    return {"seconds": round(seconds, 1), "MB": round((peak_memory() - before) / 1e6)}


# ---- the pictures of an evaluation ----


def pictures(folder: Path, count: int) -> dict[str, Any]:
    """Keep pictures as an evaluation paints them, and write their sheets; memory beyond the imports."""
    sys.path.insert(0, str(ROOT))
    import torch

    from rfft.evaluation.picture_file import PictureFile
    from rfft.evaluation.sheets import save_sheets

    rng = torch.Generator().manual_seed(0)
    small = torch.rand(16, 3, 8, 8, generator=rng)
    drawn = torch.nn.functional.interpolate(small, 512, mode="bicubic").clamp(0, 1).mul(255).byte()
    before, began = peak_memory(), time.time()
    kept = PictureFile(count, folder)
    for i in range(count):
        kept.write(i, drawn[i % 16])
    written = time.time()
    save_sheets(folder, "base", kept, columns=2)
    return {
        "ms a picture to keep": round(1000 * (written - began) / count, 1),
        "ms a picture in sheets": round(1000 * (time.time() - written) / count, 1),
        "MB": round((peak_memory() - before) / 1e6),
    }


# ---- what they have in common ----


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prompts(folder: Path) -> Path:
    file = folder / "prompts.json"
    rows = [
        {"prompt": f"on a table in a {place}", "negative_prompt": "ugly"}
        for place in ("park", "room", "cafe")
    ]
    file.write_text(json.dumps(rows))
    return file


def cutouts(folder: Path, count: int, side: int) -> Path:
    """Fill a folder with RGBA pictures, no two files alike."""
    if folder.exists():
        return folder
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    drawn = [_drawn(seed, side) for seed in range(min(SHAPES, count))]
    for i in range(count):
        (draft / f"{i:06}.png").write_bytes(_commented(drawn[i % len(drawn)], f"number {i}"))
    draft.rename(folder)
    return folder


def _drawn(seed: int, side: int) -> bytes:
    """Return a PNG of a block of coloured stripes with some noise."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((side, side, 4), np.uint8)
    left, top = rng.integers(side // 8, side // 4, 2)
    colours = rng.integers(0, 256, (side, 1, 3)) + rng.integers(-8, 9, (side, side, 3))
    pixels[top : side - top, left : side - left, :3] = colours.clip(0, 255)[
        top : side - top, left : side - left
    ]
    pixels[top : side - top, left : side - left, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _commented(png: bytes, text: str) -> bytes:
    """Return the PNG with a comment before its last chunk."""
    body = b"tEXtComment\0" + text.encode()
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return png[:-12] + chunk + png[-12:]


if __name__ == "__main__":
    main()
