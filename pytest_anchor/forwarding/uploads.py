"""The body of a paused request. Files on the browser's machine are left out of it: they are read through the page."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from .cdp import CDPError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_READ_SIZE = 8 << 20  # bytes
_PART = re.compile(rb'filename="([^"]*)"\r\nContent-Type: ([^\r]*)\r\n\r\n\Z')
# Returning the files of all inputs makes script objects of them, so that the next step finds these, too.
_INPUTS = """(() => {
  const find = (root) => [...root.querySelectorAll("*")].flatMap((one) => [
    ...(one instanceof HTMLInputElement ? (one.files ?? []) : []),
    ...(one.shadowRoot ? find(one.shadowRoot) : []),
  ]);
  return globalThis.document ? find(document) : [];
})()"""
# In the names of a form's parts, as a browser writes them.
_MATCHING = """function (name, type) {
  const written = (text) => text.replace(/\\n/g, "%0A").replace(/\\r/g, "%0D").replace(/"/g, "%22");
  return this.filter((file) => written(file.name) === name && (file.type || "application/octet-stream") === type);
}"""


def has_files(request: Mapping[str, Any]) -> bool:
    """Whether parts of a request's body are files which the browser has not sent along."""
    return any("bytes" not in entry for entry in request.get("postDataEntries", ()))


def body_of(request: Mapping[str, Any]) -> bytes | None:
    """The body of a request without such files, ``None`` if there is none."""
    if "postDataEntries" in request:
        return b"".join(base64.b64decode(entry["bytes"]) for entry in request["postDataEntries"])
    return request["postData"].encode() if "postData" in request else None


class FileReader:
    """Reads files that the script of one context holds.

    :param call: calls the context's target.
    :param context: the script's execution context.
    """

    def __init__(self, call: Callable[..., Awaitable[dict[str, Any]]], context: int) -> None:
        self._call = call
        self._context = context

    async def body_of(self, request: Mapping[str, Any]) -> bytes:
        """The body of a request that has files.

        :raises CDPError: one of them is not found.
        """
        files = await self._files()
        parts: list[bytes] = []
        taken: dict[tuple[str, str], int] = {}
        for entry in request["postDataEntries"]:
            if "bytes" in entry:
                parts.append(base64.b64decode(entry["bytes"]))
                continue
            described = _PART.search(parts[-1] if parts else b"")
            if described is None:
                raise CDPError("a body with a file that is not of a form")
            key = described[1].decode(), described[2].decode()
            taken[key] = number = taken.get(key, -1) + 1
            parts.append(await self._read(await self._find(files, *key, number)))
        return b"".join(parts)

    async def _files(self) -> str:
        """The script object with all files that the context's script holds."""
        await self._evaluate(_INPUTS)
        found = await self._call("Runtime.queryObjects", prototypeObjectId=await self._evaluate("File.prototype"))
        return str(found["objects"]["objectId"])

    async def _evaluate(self, expression: str) -> str:
        found = await self._call("Runtime.evaluate", expression=expression, contextId=self._context)
        return str(found["result"]["objectId"])

    async def _find(self, files: str, name: str, kind: str, number: int) -> str:
        found = await self._call(
            "Runtime.callFunctionOn",
            objectId=files,
            functionDeclaration=_MATCHING,
            arguments=[{"value": name}, {"value": kind}],
        )
        properties = await self._call("Runtime.getProperties", objectId=found["result"]["objectId"], ownProperties=True)
        matching = [one["value"]["objectId"] for one in properties["result"] if one["name"].isdecimal()]
        if not matching:
            raise CDPError(f"no file {json.dumps(name)}")
        return str(matching[min(number, len(matching) - 1)])

    async def _read(self, file: str) -> bytes:
        handle = f"blob:{(await self._call('IO.resolveBlob', objectId=file))['uuid']}"
        parts = []
        while True:
            read = await self._call("IO.read", handle=handle, size=_READ_SIZE)
            parts.append(base64.b64decode(read["data"]) if read.get("base64Encoded") else read["data"].encode())
            if read["eof"]:
                break
        await self._call("IO.close", handle=handle)
        return b"".join(parts)
