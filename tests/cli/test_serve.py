"""`banksman serve`: every service that it names is there. The real processes run in test_deployment.py."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from banksman.cli.serve import SERVICES


@pytest.mark.parametrize("service", SERVICES)
def test_the_module_of_a_service_is_there_and_runs(service: str) -> None:
    found = importlib.util.find_spec(SERVICES[service][0])
    assert found is not None
    assert found.origin is not None
    functions = {
        node.name for node in ast.parse(Path(found.origin).read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert "run" in functions
