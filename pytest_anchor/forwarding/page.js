// Hands the WebSockets and EventSources for forwarded hosts over to the test machine. It runs in each document and
// worker before any other script. `outward` names the binding that takes messages, `inward` the function that gets them.
(outward, inward, hosts) => {
  "use strict";
  const send = globalThis[outward];
  delete globalThis[outward];
  if (typeof send !== "function" || inward in globalThis) return;
  const isForwarded = (url) =>
    hosts.some((host) => (host.startsWith("*.") ? url.hostname.endsWith(host.slice(1)) : url.hostname === host));
  const parse = (url, base) => {
    try {
      return new URL(url, base);
    } catch {
      return null;
    }
  };
  // Whether this page may is decided by the test machine, on what the browser tells it; others are left as they are.
  const own = parse(self.origin);
  if (!own || !isForwarded(own)) return;

  // What a form sends of a file on the browser's disk is not in a paused request, and while a page is about to be left
  // nothing can be read through it. What is sent of a file in memory, is: so forms get copies there.
  function sendFilesAlong() {
    const copies = new WeakMap();
    const pending = new Set();
    const copy = async (file) => {
      const { name, type, lastModified } = file;
      copies.set(file, new File([await file.arrayBuffer()], name, { type, lastModified }));
    };
    const changed = (event) => {
      for (const file of event.target?.files ?? []) {
        const copying = copy(file).catch(() => {}); // it is gone from the disk
        pending.add(copying);
        copying.then(() => pending.delete(copying));
      }
    };
    const submitted = async (event) => {
      if (!pending.size) return;
      const { target, submitter } = event;
      event.preventDefault();
      event.stopImmediatePropagation();
      await Promise.all(pending);
      target.requestSubmit(submitter);
    };
    const collected = ({ formData }) => {
      const entries = [...formData];
      if (!entries.some(([, value]) => copies.has(value))) return;
      for (const [name] of entries) formData.delete(name);
      for (const [name, value] of entries) formData.append(name, copies.get(value) ?? value);
    };
    addEventListener("change", changed, true);
    addEventListener("submit", submitted, true);
    addEventListener("formdata", collected, true);
  }

  if (globalThis.document) sendFilesAlong();
  const { stringify } = JSON;
  const base = () => (globalThis.document ? document.baseURI : location.href);
  const states = new WeakMap(); // of the objects handed over
  const open = new Map(); // those states, by number
  let last = 0;
  const post = (state, ...message) => send(stringify([state.id, ...message]));

  // Each message is a task of its own, as promises expect, and no mocked clock holds it up.
  const tasks = new MessageChannel();
  tasks.port2.onmessage = ({ data: [id, kind, ...values] }) => open.get(id)?.[kind](...values);
  const receive = (messages) => messages.forEach((message) => tasks.port1.postMessage(message));
  Object.defineProperty(globalThis, inward, { value: receive });

  const take = (newTarget, state, kind, ...message) => {
    state.target = Reflect.construct(EventTarget, [], newTarget);
    state.id = ++last;
    state.handlers = {};
    states.set(state.target, state);
    open.set(state.id, state);
    post(state, kind, state.url, navigator.userAgent, ...message);
    return state.target;
  };
  const replace = (name, construct) => {
    const native = globalThis[name];
    const replacement = new Proxy(native, {
      construct: (_, values, newTarget) => construct(values, newTarget) ?? Reflect.construct(native, values, newTarget),
    });
    Object.defineProperty(globalThis, name, { value: replacement, writable: true, configurable: true });
    native.prototype.constructor = replacement;
    return native.prototype;
  };
  const accessor = (prototype, name, get, set) => {
    const native = Object.getOwnPropertyDescriptor(prototype, name);
    const replacement = {
      ...native,
      get() {
        const state = states.get(this);
        return state ? get(state) : Reflect.apply(native.get, this, []);
      },
    };
    if (native.set) {
      replacement.set = function (value) {
        const state = states.get(this);
        if (state) set?.(state, value);
        else Reflect.apply(native.set, this, [value]);
      };
    }
    Object.defineProperty(prototype, name, replacement);
  };
  const method = (prototype, name, call) => {
    const native = prototype[name];
    prototype[name] = {
      [name](...values) {
        const state = states.get(this);
        return state ? call(state, ...values) : Reflect.apply(native, this, values);
      },
    }[name];
  };
  const handlers = (prototype, ...types) => {
    for (const type of types) {
      accessor(
        prototype,
        `on${type}`,
        (state) => state.handlers[type]?.handler ?? null,
        (state, handler) => {
          const old = state.handlers[type];
          if (typeof handler !== "function") {
            if (old) state.target.removeEventListener(type, old);
            delete state.handlers[type];
          } else if (old) {
            old.handler = handler;
          } else {
            const listener = (event) => Reflect.apply(listener.handler, state.target, [event]);
            listener.handler = handler;
            state.handlers[type] = listener;
            state.target.addEventListener(type, listener);
          }
        },
      );
    }
  };

  const toBase64 = (bytes) => {
    if (bytes.toBase64) return bytes.toBase64();
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(text);
  };
  const fromBase64 = (text) =>
    Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const sizeOf = (text) => new TextEncoder().encode(text).length;

  const webSocket = replace("WebSocket", ([given, protocols], newTarget) => {
    const url = parse(given, base());
    if (!url) return null;
    url.protocol = { "http:": "ws:", "https:": "wss:" }[url.protocol] ?? url.protocol;
    if (!["ws:", "wss:"].includes(url.protocol) || !isForwarded(url)) return null;
    url.hash = "";
    const names = protocols === undefined ? [] : typeof protocols === "string" ? [protocols] : Array.from(protocols, String);
    const isValid = names.every((name) => /^[\w!#$%&'*+.^`|~-]+$/.test(name));
    if (!isValid || new Set(names.map((name) => name.toLowerCase())).size !== names.length) {
      throw new DOMException(`The subprotocols '${names}' are invalid or duplicated.`, "SyntaxError");
    }
    const state = {
      url: url.href,
      readyState: 0,
      protocol: "",
      extensions: "",
      bufferedAmount: 0,
      binaryType: "blob",
      open(protocol) {
        state.protocol = protocol;
        if (state.readyState !== 0) return;
        state.readyState = 1;
        state.target.dispatchEvent(new Event("open"));
      },
      sent(size) {
        state.bufferedAmount -= size;
      },
      message(data) {
        if (state.readyState !== 1) return;
        state.target.dispatchEvent(new MessageEvent("message", { data, origin: url.origin }));
      },
      text(data) {
        state.message(data);
      },
      binary(base64) {
        const { buffer } = fromBase64(base64);
        state.message(state.binaryType === "blob" ? new Blob([buffer]) : buffer);
      },
      closed(wasClean, code, reason) {
        open.delete(state.id);
        state.readyState = 3;
        if (!wasClean) state.target.dispatchEvent(new Event("error"));
        state.target.dispatchEvent(new CloseEvent("close", { wasClean, code, reason }));
      },
    };
    return take(newTarget, state, "websocket", names);
  });
  const inTurn = (state, step) => {
    if (state.pending) state.pending = state.pending.then(step);
    else step();
  };
  method(webSocket, "send", (state, data) => {
    if (state.readyState === 0) throw new DOMException("Still in CONNECTING state.", "InvalidStateError");
    let size, step;
    if (data instanceof Blob) {
      size = data.size;
      state.pending ??= Promise.resolve();
      step = async () => post(state, "binary", toBase64(new Uint8Array(await data.arrayBuffer())), size);
    } else if (data instanceof ArrayBuffer || ArrayBuffer.isView(data)) {
      size = data.byteLength;
      const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array(data.buffer, data.byteOffset, size);
      const base64 = toBase64(bytes);
      step = () => post(state, "binary", base64, size);
    } else {
      const text = String(data).toWellFormed();
      size = sizeOf(text);
      step = () => post(state, "text", text, size);
    }
    state.bufferedAmount += size;
    if (state.readyState === 1) inTurn(state, step);
  });
  method(webSocket, "close", (state, code, reason = "") => {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException(`The code must be 1000, or from 3000 to 4999. ${code} is neither.`, "InvalidAccessError");
    }
    if (sizeOf(String(reason)) > 123) throw new DOMException("The reason is longer than 123 bytes.", "SyntaxError");
    if (state.readyState > 1) return;
    state.readyState = 2;
    inTurn(state, () => post(state, "close", code ?? 1005, String(reason)));
  });
  for (const name of ["url", "readyState", "protocol", "extensions", "bufferedAmount"]) {
    accessor(webSocket, name, (state) => state[name]);
  }
  accessor(webSocket, "binaryType", (state) => state.binaryType, (state, value) => {
    if (value === "blob" || value === "arraybuffer") state.binaryType = value;
  });
  handlers(webSocket, "open", "message", "error", "close");

  if (!globalThis.EventSource) return;
  const eventSource = replace("EventSource", ([given, init], newTarget) => {
    const url = parse(given, base());
    if (!url || !["http:", "https:"].includes(url.protocol) || !isForwarded(url)) return null;
    const state = {
      url: url.href,
      withCredentials: Boolean(init?.withCredentials),
      readyState: 0,
      open() {
        if (state.readyState === 2) return;
        state.readyState = 1;
        state.target.dispatchEvent(new Event("open"));
      },
      event(type, data, lastEventId, origin) {
        if (state.readyState === 2) return;
        state.target.dispatchEvent(new MessageEvent(type, { data, lastEventId, origin }));
      },
      failed(isOver) {
        if (state.readyState === 2) return;
        state.readyState = isOver ? 2 : 0;
        if (isOver) open.delete(state.id);
        state.target.dispatchEvent(new Event("error"));
      },
    };
    return take(newTarget, state, "eventsource", state.withCredentials);
  });
  method(eventSource, "close", (state) => {
    if (state.readyState === 2) return;
    state.readyState = 2;
    open.delete(state.id);
    post(state, "close");
  });
  for (const name of ["url", "withCredentials", "readyState"]) accessor(eventSource, name, (state) => state[name]);
  handlers(eventSource, "open", "message", "error");
}
