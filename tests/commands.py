"""What the tests of the command line share."""

import json

HOUR = 3600.0


def told(capsys):
    return json.loads(capsys.readouterr().out)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def aged(server, seconds, *carried):
    one = server.add(*carried)
    server.sessions[one].created -= seconds
    return one
