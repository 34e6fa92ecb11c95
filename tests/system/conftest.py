"""A browser for the tests of pages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.browser import running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests of a file."""
    with running(tmp_path_factory.mktemp("browser")) as driver:
        yield driver
