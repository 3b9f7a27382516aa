"""What the tests of sweeps share."""

import time

from pytest_anchor.cleanup.policy import SweepObserver, SweepPolicy
from pytest_anchor.cleanup.sweep import SweepTarget, sweep_run


class Observer(SweepObserver):
    """Keeps what it is told; *looks* are the answers to whether there is to be another round."""

    def __init__(self, looks=None):
        self.looks = looks
        self.steps, self.over, self.rounds = [], [], 0

    def progress(self, done, total):
        self.steps.append((done, total))

    def ended(self, nonce):
        self.over.append(nonce)

    def after_round(self):
        self.rounds += 1

    def should_continue(self):
        return True if self.looks is None else next(self.looks)


def everything(_record):
    return True


def swept(api, run, timeout=5.0, observer=None, is_included=everything, **policy):
    before = time.monotonic()
    policy = SweepPolicy(**{"ends_unrecorded": True, **policy})
    records = run.read().records.items()
    nonces = None if is_included is everything else {nonce for nonce, record in records if is_included(record)}
    problem = sweep_run(
        SweepTarget(api, run, "r1", nonces), policy, timeout=timeout, observer=observer or SweepObserver()
    )
    return problem, time.monotonic() - before


def states(run):
    return {nonce: record.state for nonce, record in run.read().records.items()}
