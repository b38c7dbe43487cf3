"""Super-resolution: PSNR and SSIM are those of scikit-image; a run has rows of both, and of bicubic enlargement."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import repeat
from harness.core.errors import UserError
from harness.data import sample_images
from harness.data._enlarging import smaller
from harness.models import build_model, edsr
from harness.tasks import super_resolution
from harness.tasks.base import find
from harness.training.config import complete
from harness.training.run import run

RAW: dict[str, Any] = {
    "seed": 3,
    "target_bit": 3,
    "methods": ["ste"],
    "model": {"name": "edsr", "blocks": 1, "features": 4},
    "data": {"name": "sample_images", "patch": 8, "crops": 8},
    "train": {"epochs": 1, "batch_size": 4},
    "deploy": {"bits": [3], "scale": "recalibrate"},
    "runtime": {"wandb": "off", "device": "cpu", "threads": 1},
}
#: By scikit-image 0.26, of a part of the test photograph that was enlarged by Pillow's bicubic: scale: (PSNR, SSIM).
REFERENCE = {2: (25.66115, 0.837271), 3: (22.99031, 0.683069), 4: (21.68227, 0.562634)}


def enlarged(scale: int) -> tuple[np.ndarray, np.ndarray]:
    """A part of the test photograph, and its small version enlarged by Pillow; uint8 (120, 144, 3)."""
    high = sample_images._photographs()[1][150:270, 250:394]
    low = smaller(high, scale)[0].permute(1, 2, 0).numpy()
    return high, np.asarray(Image.fromarray(low).resize((144, 120), Image.Resampling.BICUBIC))


def measured(scale: int, one: np.ndarray, other: np.ndarray) -> list[float]:
    """PSNR, loss and SSIM, by the task."""
    outputs, targets = (torch.from_numpy(each.copy()).permute(2, 0, 1)[None].float() / 255 for each in (one, other))
    inputs = torch.zeros(1, 3, targets.shape[2] // scale, targets.shape[3] // scale)
    return find("super_resolution").summed(outputs, targets, inputs).tolist()


@pytest.mark.parametrize("scale", REFERENCE)
def test_psnr_and_ssim_are_those_of_scikit_image(scale: int) -> None:
    high, bicubic = enlarged(scale)
    psnr, loss, ssim = measured(scale, bicubic, high)
    assert (psnr, ssim) == (pytest.approx(REFERENCE[scale][0], abs=1e-3), pytest.approx(REFERENCE[scale][1], abs=1e-4))
    assert loss == pytest.approx(np.abs(bicubic / 255 - high / 255).mean(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale", REFERENCE)
def test_the_reference_is_what_scikit_image_gives(scale: int) -> None:
    from skimage import color, metrics

    cut = slice(scale, -scale)
    one, other = (color.rgb2ycbcr(each)[cut, cut, 0] for each in enlarged(scale))
    psnr = metrics.peak_signal_noise_ratio(one, other, data_range=255)
    ssim = metrics.structural_similarity(
        one, other, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert REFERENCE[scale] == (pytest.approx(psnr, abs=1e-4), pytest.approx(ssim, abs=1e-5))


def test_equal_images_and_grey_ones() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 18, 3), dtype=np.uint8)
    psnr, loss, ssim = measured(2, image, image)
    assert (psnr, loss, ssim) == (100, 0, pytest.approx(1))
    grey = torch.linspace(0, 1, 256)[None, None, None]
    assert super_resolution.luma(grey)[0, 0].tolist() == pytest.approx(list(range(256)))


def test_the_baseline_is_pillows_bicubic() -> None:
    high, pillow = enlarged(2)
    low = smaller(high, 2)[0][None].float() / 255
    ours = find("super_resolution").baseline_network(2)(low).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    assert np.quantile(np.abs(ours - pillow), 0.99) < 1.5  # Pillow rounds and clamps after each dimension


def test_a_run_has_rows_of_both_figures_and_of_the_baseline(tmp_path: Path) -> None:
    high = enlarged(2)[0]
    for name, image in (("train", high[:, :72]), ("val", high[:, 72:]), ("test", high)):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / f"{name}/flower.png")
    folders = {"name": "image_pairs", "root": str(tmp_path), "val": "val", "patch": 8, "crops": 8}
    record = run(complete({**RAW, "data": folders}), tmp_path / "run")
    assert {(row["split"], row["deploy"], row["bits"]) for row in record["rows"]} == {
        (split, deploy, bits)
        for split in ("val", "test")
        for deploy, bits in [("rtn", 3), ("rtn", "float"), ("bicubic", "float")]
    }
    assert {(row["metric"], row["n"]) for row in record["rows"]} == {("psnr", 1)}
    (bicubic,) = (row for row in record["rows"] if (row["split"], row["deploy"]) == ("test", "bicubic"))
    assert bicubic["score"] == pytest.approx(REFERENCE[2][0], abs=0.05)
    assert bicubic["ssim"] == pytest.approx(REFERENCE[2][1], abs=1e-3)
    assert [each["deploy"] for each in record["deployments"]] == ["rtn", "rtn"]
    assert repeat._as_recorded(record)["deploy"]["methods"] == ["rtn"], "nobody asks for the baseline's rows"
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"val/psnr_w3", "val/ssim_w3", "val/loss_w3", "val/psnr_float", "val/psnr_worst"} <= set(line)
    assert line["val/monitor"] == record["monitor"] == line["val/psnr_w3"]


def test_the_papers_baseline_has_its_number_of_parameters() -> None:
    model = build_model(edsr.Config(), (3, 24, 24), 2, seed=0)
    assert sum(each.numel() for each in model.parameters()) == 1_369_859
    assert next(iter(model.state_dict())) == "head.weight"


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_edsr_enlarges_images_of_any_size(scale: int, channels: int) -> None:
    model = build_model(edsr.Config(blocks=2, features=4), (channels, 8, 8), scale, seed=0)
    assert model(torch.zeros(2, channels, 5, 7)).shape == (2, channels, 5 * scale, 7 * scale)


def test_a_block_adds_its_scaled_branch() -> None:
    x = torch.randn(1, 4, 6, 6)
    whole, part = (build_model(edsr.Config(blocks=1, features=4, residual_scale=s), (3, 8, 8), 2, 0) for s in (1, 0.1))
    block, scaled = whole.body[0], part.body[0]  # type: ignore[index]
    torch.testing.assert_close(scaled(x) - x, 0.1 * (block(x) - x))
    torch.testing.assert_close(block(x) - x, block.conv2(block.conv1(x).relu()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "resnet18"}}, "model 'resnet18' serves classification, and the task of data set 'sample"),
        ({"data": {"name": "digits"}}, "model 'edsr' serves super_resolution, and the task of data set 'digits' is"),
        ({"model": {"name": "edsr", "init": "pretrained"}}, "there are no pretrained weights of edsr"),
        ({"data": {"name": "sample_images", "scale": 5}}, "scale"),
        ({"data": {"name": "sample_images", "patch": 97}}, "patch"),
        ({"train": {"label_smoothing": 0.1}}, "train.label_smoothing: 0.1 has no meaning in the task super_resolution"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        complete({**RAW, **changes})
    assert said in str(refused.value)
