"""2:4 kernels: refused by name where there are none; what is 2:4 is told without them. No device of these tests has them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import InputError
from featherweight.ship.semi_structured import is_two_of_four


def test_a_device_without_the_kernels_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"on cpu.*pack.*export"):
        fw.semi_structured(nn.Linear(64, 64))


def test_an_old_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featherweight.ship.semi_structured.device_of", lambda network: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a T4")
    with pytest.raises(InputError, match=r"8\.0.*a T4 has less"):
        fw.semi_structured(nn.Linear(64, 64))


def test_what_is_two_of_four() -> None:
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]])
    assert is_two_of_four(weight)
    weight[0, 1] = 1
    assert not is_two_of_four(weight) and not is_two_of_four(torch.zeros(2, 6))
