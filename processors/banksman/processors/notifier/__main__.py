"""`python -m banksman.processors.notifier`: the notifier."""

from banksman.processors.notifier.main import run

run()
