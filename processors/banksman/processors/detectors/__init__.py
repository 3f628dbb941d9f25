"""One file for each thing that is looked for. Each has a `DETECTOR`; nothing else is needed to add one."""
