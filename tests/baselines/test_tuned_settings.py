"""The tuned values in recipes/configs/baselines.yaml are ones that the baselines take, and each has its budget."""

from pathlib import Path

import yaml

from modeling_cllm4rec.baselines import check_settings

TUNED = Path(__file__).parents[2] / "recipes" / "configs" / "baselines.yaml"


def test_tuned_settings_fit_the_baselines():
    tuned = yaml.safe_load(TUNED.read_text(encoding="utf-8"))
    assert tuned
    for folder, by_name in tuned.items():
        assert isinstance(folder, str)
        for name, settings in by_name.items():
            assert settings.pop("tuned", {"trials": 1})["trials"] > 0  # settings that a data set needs may be untuned
            check_settings(name, settings)
