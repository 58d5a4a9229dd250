"""What the tests of recipes share."""

from pathlib import Path

import pytest

from tests.recipes import runs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of a tiny run of lmu_gigaspeech on a few clips."""
    return runs.write_config(tmp_path_factory.mktemp("corpus"))
