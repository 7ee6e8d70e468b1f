import platform

import torch

from mmdit.storage.versions import version_of, versions


def test_versions_of_what_is_there_and_what_is_not():
    assert torch.__version__.startswith(version_of("torch"))
    assert version_of("no-such-distribution") == "not installed"
    found = versions(["torch", "no-such-distribution"])
    assert found == {
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "no-such-distribution": "not installed",
    }
    assert "multimodal-dit" in versions()
