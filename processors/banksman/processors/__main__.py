"""`python -m banksman.processors`: the archiver."""

from banksman.processors.main import run

run()
