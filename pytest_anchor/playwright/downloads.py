"""Brings downloads to this machine: a browser elsewhere writes them to its own disk, and Playwright names that path.

A page may read a file that is chosen in an ``<input>``, and the protocol can choose one by its path.
"""

from __future__ import annotations

import os
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AnchorError, printable
from . import apis

if TYPE_CHECKING:
    from collections.abc import Callable

    from .launch import Replacements

CHUNK = 6 << 20  # bytes that one message of the protocol carries
_INPUT = "document.body.appendChild(Object.assign(document.createElement('input'), {type: 'file'}))"
_SIZE = "function() { return this.files.length ? this.files[0].size : -1 }"
_READ = """function(from, to) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(this.files[0].slice(from, to));
  });
}"""


def replace_downloads(replacements: Replacements) -> None:
    """Have ``Download.path()`` and ``save_as()`` work wherever the browser runs."""
    from playwright import async_api, sync_api

    for api in (sync_api, async_api):
        path_of = vars(api.Download)["path"]

        def make_path(_original: Any, path_of: Any = path_of) -> Callable[..., Any]:
            def path(download: Any) -> Any:
                __tracebackhide__ = True
                return apis.run(download, _local_path(download, path_of))

            return path

        def make_save_as(original: Any, path_of: Any = path_of) -> Callable[..., Any]:
            async def save_as(download: Any, path: Any) -> None:
                __tracebackhide__ = True
                await _local_path(download, path_of)
                await apis.settle(original(download, path))

            return lambda download, path: apis.run(download, save_as(download, path))

        replacements.replace(api.Download, "path", make_path)
        replacements.replace(api.Download, "save_as", make_save_as)


async def _local_path(download: Any, path_of: Any) -> Any:
    __tracebackhide__ = True
    path = await apis.settle(path_of(download))
    if path is not None and not Path(path).exists():  # noqa: ASYNC240 - a look at the disk takes no time
        await _bring(download.page.context.browser, Path(path))
    return path


async def _bring(browser: Any, path: Path) -> None:
    """Write what the browser has at *path* to the same path of this machine."""
    __tracebackhide__ = True
    context = await apis.settle(type(browser).new_context(browser))  # not what the instance may have in its place
    try:
        page = await apis.settle(context.new_page())
        file = await _RemoteFile.choose(await apis.settle(context.new_cdp_session(page)), path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as output:
            for start in range(0, file.size, CHUNK):
                output.write(await file.read(start, start + CHUNK))
        part.replace(path)
    finally:
        await apis.settle(context.close())


class _RemoteFile:
    """A file on the browser's machine, as chosen in an ``<input>``."""

    def __init__(self, protocol: Any, path: Path, element: str) -> None:
        self._protocol = protocol
        self._path = path
        self._element = element
        self.size = 0

    @classmethod
    async def choose(cls, protocol: Any, path: Path) -> _RemoteFile:
        __tracebackhide__ = True
        found = await apis.settle(protocol.send("Runtime.evaluate", {"expression": _INPUT}))
        file = cls(protocol, path, found["result"]["objectId"])
        chosen = {"files": [str(path)], "objectId": file._element}
        await apis.settle(protocol.send("DOM.setFileInputFiles", chosen))
        file.size = await file._call(_SIZE)
        if file.size < 0:
            raise file._failure("its browser gives no file")
        return file

    async def read(self, start: int, end: int) -> bytes:
        __tracebackhide__ = True
        return b64decode(await self._call(_READ, start, end))

    async def _call(self, function: str, *arguments: int) -> Any:
        __tracebackhide__ = True
        answer = await apis.settle(
            self._protocol.send(
                "Runtime.callFunctionOn",
                {
                    "functionDeclaration": function,
                    "objectId": self._element,
                    "arguments": [{"value": one} for one in arguments],
                    "returnByValue": True,
                    "awaitPromise": True,
                },
            )
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise self._failure(details.get("exception", {}).get("description") or details["text"])
        return answer["result"]["value"]

    def _failure(self, reason: str) -> AnchorError:
        return AnchorError(f"the download cannot be brought from the session's machine: {printable(reason)}")
