"""`python -m banksman.enforcer`."""

from banksman.enforcer.main import run

run()
