"""`python -m banksman.processors.archiver`: the archiver."""

from banksman.processors.archiver.main import run

run()
