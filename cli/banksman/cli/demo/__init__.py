"""`banksman up --demo`: recorded and live agents, the two questions, and proof that every action is in the log once."""
