"""What the engine itself knows about who may do what: two roles, of which a handle takes one.

Every handle is the engine's own user `default`, which holds nothing but these roles. A read-only user's handle takes `reader`
before it sees the query: then the engine refuses to write, to make anything, and to reach files, URLs and other servers as
tables. That is the second wall. It does not stand everywhere (the function `file`, INTO OUTFILE, the system tables), so
statements.py is the first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pathlib import Path

READER = "reader"
_USERS = """\
<clickhouse>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <roles>
    <writer><grants><query>GRANT ALL ON *.*</query></grants></writer>
    <reader><grants>
      <query>GRANT SELECT, SHOW DATABASES, SHOW TABLES, SHOW COLUMNS, SHOW DICTIONARIES, dictGet ON *.*</query>
    </grants></reader>
  </roles>
  <users>
    <default>
      <password></password>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <grants><query>GRANT writer, reader</query></grants>
    </default>
  </users>
</clickhouse>
"""


def write_configuration(folder: Path, server_settings: dict[str, int]) -> Path:
    """Write the engine's configuration into `folder` -> the file to start it with. No secret is in it: `default` cannot be
    reached from outside.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    users, main = folder / "users.xml", folder / "config.xml"
    settings = "".join(f"<{name}>{value}</{name}>" for name, value in server_settings.items())
    for path, text in (
        (users, _USERS),
        (main, f"<clickhouse><users_config>{escape(str(users))}</users_config>{settings}</clickhouse>\n"),
    ):
        whole = path.with_suffix(".new")
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        whole.replace(path)
    return main
