"""`python -m banksman.console`."""

from banksman.console.main import run

run()
