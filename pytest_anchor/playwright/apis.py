"""One body of code for both of Playwright's APIs, the synchronous and the asynchronous one.

They differ in that the one returns what the other returns an awaitable of. So code for both is a coroutine function
that awaits ``settle(…)`` of each call: with the synchronous API it never waits, and is run to its end at once.
"""

from __future__ import annotations

from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


def is_async(playwright: object) -> bool:
    """Whether an object of Playwright's belongs to its asynchronous API."""
    return any(cls.__module__.startswith("playwright.async_api") for cls in type(playwright).__mro__)


def is_error(error: BaseException) -> bool:
    """Whether an exception is one of Playwright's own."""
    return any(cls.__module__.startswith("playwright.") for cls in type(error).__mro__)


async def settle(value: Any) -> Any:
    """What a call of either API comes to."""
    return await value if isawaitable(value) else value


async def without_blocking(
    playwright: object, function: Callable[[], T], discard: Callable[[T], object] = lambda _result: None
) -> T:
    """What *function*, which blocks, returns; the event loop of the asynchronous API goes on meanwhile.

    :param playwright: an object of the API that is used.
    :param discard: called with a result that the cancelled task does not take.
    """
    __tracebackhide__ = True
    if not is_async(playwright):
        return function()
    from ..asynchronous import run_blocking

    return await run_blocking(function, discard=discard)


def run(playwright: object, work: Coroutine[Any, Any, T]) -> Any:
    """Run *work*: at once for the synchronous API; for the other, return it for its caller to await.

    :param playwright: an object of the API that is used.
    """
    __tracebackhide__ = True
    if is_async(playwright):
        return work
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    work.close()
    raise RuntimeError("a call of Playwright's synchronous API returned an awaitable")
