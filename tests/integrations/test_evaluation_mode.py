"""A model in evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from scorecraft.integrations.evaluation_mode import evaluating


def test_every_module_gets_its_own_mode_back_also_after_an_error() -> None:
    frozen, free = nn.Dropout().eval(), nn.Dropout()
    model = nn.Sequential(nn.Sequential(frozen), free)

    def interrupted() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert [module.training for module in (model, frozen, free)] == [True, False, True]
