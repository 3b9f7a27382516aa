"""What the tests of sweeps share."""

import time

from pytest_anchor.cleanup.sweep import SweepObserver, SweepPolicy, sweep_run


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


def swept(api, run, timeout=5.0, observer=None, selects=everything, **policy):
    before = time.monotonic()
    policy = SweepPolicy(**{"adopts": True, **policy})
    problem = sweep_run(api, run, "r1", policy, timeout=timeout, observer=observer or SweepObserver(), selects=selects)
    return problem, time.monotonic() - before


def states(run):
    return {nonce: record.state for nonce, record in run.read().records.items()}
