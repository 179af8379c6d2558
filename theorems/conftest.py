"""``pytest theorems`` needs no ``-p theorems.plugin``."""

import pytest


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.import_plugin("theorems.plugin")
