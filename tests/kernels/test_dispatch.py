"""When passes in C or Triton serve: the answers of harness/kernels/dispatch.py."""

import shutil

import pytest
import torch
from torch import Tensor

from harness.kernels import cpu, dispatch, library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

WEIGHT = torch.randn(6, 4, 3, 3)
LAST = WEIGHT.to(memory_format=torch.channels_last)
CODE = torch.zeros(6, 4, 3, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    ("weights", "like", "served"),
    [
        ((WEIGHT,), (), True),
        ((LAST,), (), True),
        ((WEIGHT, WEIGHT.clone()), (CODE, CODE.half(), CODE.bool()), True),
        ((), (WEIGHT.double(), CODE), True),  # of any type
        ((WEIGHT.double(),), (), False),
        ((WEIGHT.half(),), (), False),
        ((WEIGHT, WEIGHT.double()), (), False),
        ((WEIGHT, LAST), (), False),
        ((WEIGHT,), (CODE.to(memory_format=torch.channels_last),), False),
        ((WEIGHT,), (CODE[:, :, :, :2],), False),
        ((WEIGHT[:, :, :, :2],), (), False),
        ((WEIGHT.view(6, 36).t(),), (), False),
        ((WEIGHT.to("meta"),), (), False),
        ((WEIGHT,), (CODE.to("meta"),), False),
        ((torch.ones(6, 4, 1, 1),), (CODE[:, :, :1, :1].to(memory_format=torch.channels_last).contiguous(),), True),
        ((torch.ones(6, 4).as_strided((6, 4, 1, 1), (4, 1, 7, 9)),), (torch.zeros(6, 4, 1, 1),), True),
    ],
)
def test_c_serves_fp32_on_the_cpu_in_one_order(
    weights: tuple[Tensor, ...], like: tuple[Tensor, ...], served: bool
) -> None:
    assert dispatch.serves(*weights, like=like) == served


def test_nothing_serves_without_a_library_or_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert dispatch.serves_images(images)
    assert not dispatch.serves_images(images.to(memory_format=torch.channels_last))
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not dispatch.serves(WEIGHT)
        patch.setattr(dispatch, "on_gpu", lambda device: True)
        assert not dispatch.serves_on_gpu(WEIGHT, per_channel=False)
        assert not dispatch.fake_quantization(WEIGHT, per_channel=False)
    monkeypatch.setattr(library, "library", lambda: None)
    assert not dispatch.serves(WEIGHT)
    assert not dispatch.serves_images(images)


def test_triton_serves_per_tensor_steps_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not dispatch.serves_on_gpu(WEIGHT, per_channel=False)
    assert dispatch.fake_quantization(WEIGHT, per_channel=True)
    assert dispatch.passes_on(WEIGHT.device) is cpu
    monkeypatch.setattr(dispatch, "on_gpu", lambda device: True)
    for asked in (dispatch.serves_on_gpu, dispatch.fake_quantization):
        assert asked(WEIGHT, per_channel=False)
        assert not asked(WEIGHT, per_channel=True)
        assert not asked(WEIGHT.double(), per_channel=False)
        assert not asked(WEIGHT[:, :, :, :2], per_channel=False)
    assert not dispatch.serves_on_gpu(WEIGHT, per_channel=False, like=(CODE.to(memory_format=torch.channels_last),))
