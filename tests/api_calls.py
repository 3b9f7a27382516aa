"""What the tests of single calls of the API share."""

import pickle
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from fault_server import KEY

TAG = "pytest-anchor:new=inv-1"


def later(seconds=5.0):
    return time.monotonic() + seconds


def frames(error):
    """The values of all local variables that a traceback could show, as text."""
    trace = error.__traceback__
    while trace is not None:
        if not trace.tb_frame.f_globals.get("__name__", "").startswith("test_"):
            for value in trace.tb_frame.f_locals.values():
                yield repr(value)
        trace = trace.tb_next


def check_no_key(error, key=KEY):
    chain = [error]
    while (error := error.__cause__ or error.__context__) is not None:
        chain.append(error)
    for one in chain:
        assert key not in str(one)
        assert key not in repr(one)
        assert key.encode() not in pickle.dumps(one)


def when(seconds):
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)
