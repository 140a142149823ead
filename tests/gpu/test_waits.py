"""What would make the host wait for a GPU, found without one: on tensors that have no values."""

from functools import partial

import pytest
import torch
from flux_models import NAMES, flux_model
from parts import build
from torch._subclasses.fake_tensor import FakeTensorMode
from waits import checks, watched


SIZES = {"image_size": 56, "num_frames": 4, "drop_path_rate": 0.1, "classifier_dropout": 0.1}


def test_fluxvit_waits_for_no_gpu():
    ran = []
    for name, check in checks(partial(build, True, **SIZES), True, "cpu"):
        check()
        ran.append(name)
    assert len(ran) == 7


@pytest.mark.parametrize("name", NAMES)
def test_flux_on_a_library_encoder_waits_for_no_gpu(name):
    for check_name, check in checks(partial(flux_model, name, separate_heads=True), True, "cpu"):
        if check_name != "augmentation":  # not the model's
            check()


WAITING = {
    "a value": lambda tensor: tensor.sum().item(),
    "a condition": lambda tensor: bool((tensor > 0).any()),
    "equality": lambda tensor: torch.equal(tensor, tensor + 1),
    "a number of places": lambda tensor: tensor.nonzero(),
    "a choice": lambda tensor: tensor[tensor > 0],
    "filling a choice": lambda tensor: tensor.index_put_((tensor > 0,), torch.zeros(1, device=tensor.device)),
    "counts": lambda tensor: torch.bincount(tensor.long(), minlength=4),
    "numbers": lambda tensor: tensor + torch.tensor([1.0, 2.0, 3.0], device=tensor.device),
    "numbers moved": lambda tensor: tensor + torch.tensor([1.0, 2.0, 3.0]).to(tensor.device),
    "a copy": lambda tensor: tensor.copy_(torch.zeros(3)),
    "a copy back": lambda tensor: tensor.cpu(),
    "two devices": lambda tensor: tensor + torch.arange(3),
}


@pytest.mark.parametrize("name", WAITING)
def test_waiting_is_found(name):
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensor = torch.zeros(3, device="cuda")
        with watched("cpu"):
            (tensor + torch.tensor([1.0, 2.0, 3.0]).to("cuda", non_blocking=True)).to("cpu", non_blocking=True)
            with pytest.raises(RuntimeError):  # torch's own of values, shapes and devices are such too
                WAITING[name](tensor)
