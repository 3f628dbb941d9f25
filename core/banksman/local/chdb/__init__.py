"""ClickHouse on this machine: the chDB engine behind a server that speaks ClickHouse's HTTP protocol.

`python -m banksman.local.chdb --path DIR --port 8123 --users FILE`. Services and clients connect as to a real server and do
not know the difference. The engine has no access control of its own, so users and what they may do live here.
"""
