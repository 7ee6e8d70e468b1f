from __future__ import annotations

import dataclasses
import json

import pytest

from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, Modality, get_modalities


def test_defaults_are_mmgens() -> None:
    assert list(MODALITIES) == ["rgb", "depth", "normal", "segmentation"]
    assert [modality.loss_weight for modality in MODALITIES.values()] == [1.0, 0.2, 0.1, 0.1]
    assert all(name == modality.name for name, modality in MODALITIES.items())


@pytest.mark.parametrize("modality", MODALITIES.values(), ids=MODALITIES)
def test_json_round_trip(modality: Modality) -> None:
    whitened = modality.replace(latents_mean=[0.5, -1.0], latents_std=[1.0, 2.0])
    loaded = Modality.from_dict(json.loads(json.dumps(whitened.to_dict(), sort_keys=True)))
    assert loaded == whitened
    assert loaded.latents_mean == (0.5, -1.0)
    assert modality.latents_mean is None


def test_settings_stand_beside_the_fields() -> None:
    values = MODALITIES["depth"].to_dict()
    assert values["space"] in ("disparity", "depth")
    assert "settings" not in values
    assert Modality.from_dict(values).settings == {"space": values["space"], "quantiles": values["quantiles"]}


def test_replace_changes_a_copy() -> None:
    depth = MODALITIES["depth"].replace(space="depth", loss_weight=3.0)
    assert (depth.settings["space"], depth.loss_weight, depth.name) == ("depth", 3.0, "depth")
    assert MODALITIES["depth"].settings["space"] == "disparity"
    with pytest.raises(dataclasses.FrozenInstanceError):
        depth.loss_weight = 1.0  # type: ignore[misc]


def test_get_modalities_keeps_order_and_names_the_nearest() -> None:
    assert list(get_modalities(["segmentation", "rgb"])) == ["segmentation", "rgb"]
    with pytest.raises(UserError, match=r"'normals'.*did you mean 'normal'"):
        get_modalities(["rgb", "normals"])
