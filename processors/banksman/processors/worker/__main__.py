"""`python -m banksman.processors.worker`: a worker of the processors."""

from banksman.processors.worker.main import run

run()
