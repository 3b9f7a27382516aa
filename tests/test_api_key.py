import json
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from contextlib import suppress

import fault_server as fs
import pytest
from api_calls import TAG, check_no_key, frames, later
from fault_server import KEY, FaultServer
from ports import unused_port

from pytest_anchor.api import AnchorAPI, endpoints
from pytest_anchor.errors import AnchorAPIError, AnchorLostCreateError

# the key


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(server, api, code):
    with FaultServer() as other:
        for method in ("POST", "GET", "DELETE"):
            server.fail_always(method, fs.body(b"", code, Location=f"{other.url}/v1/sessions"))
        with pytest.raises(AnchorLostCreateError, match="the key would go along"):
            api.create({})
        with pytest.raises(AnchorAPIError, match="the key would go along"):
            api.end("abc", TAG, deadline=later())
        with pytest.raises(AnchorAPIError, match="the key would go along"):
            api.sessions_with_tag(TAG, deadline=later())
        assert other.connections == 0


def test_to_loopback_goes_no_proxy(server, quick, monkeypatch):
    with FaultServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        AnchorAPI(server.url, KEY).create({})
        assert proxy.connections == 0
    assert len(server.alive) == 1


def test_a_proxy_that_does_not_answer_creates_nothing(quick, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(AnchorAPIError) as caught:
        AnchorAPI("https://anchor.example", KEY).create({})
    assert type(caught.value) is AnchorAPIError


class Tunnels(socketserver.BaseRequestHandler):
    """A proxy that leads every CONNECT to one server."""

    def handle(self):
        while not self.request.recv(4096, socket.MSG_PEEK).endswith(b"\r\n\r\n"):
            time.sleep(0.01)
        self.request.recv(4096)
        with socket.create_connection(self.server.leads_to) as there:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self.pass_on, args=(there, self.request))
            back.start()
            self.pass_on(self.request, there)
            back.join()

    def pass_on(self, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def behind_a_proxy(server, quick, monkeypatch, tmp_path):
    """The API with TLS, to which a proxy leads."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=anchor.example"
    names = ["-addext", "subjectAltName=DNS:anchor.example", "-out", certificate, "-keyout", key]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnels) as proxy:
        proxy.daemon_threads = True
        proxy.leads_to = server._http.server_address
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        yield AnchorAPI("https://anchor.example", KEY)
        proxy.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the server's certificate")
def test_what_is_lost_behind_a_proxy_is_lost(server, behind_a_proxy):
    api = behind_a_proxy
    ended = api.create({}).id
    assert not api.end(ended, TAG, deadline=later()).already
    for fault in (fs.lost_reset, fs.lost_truncated, fs.lost_status(502)):
        server.fail("POST", fault)
        with pytest.raises(AnchorLostCreateError):
            api.create({})
    assert len(server.alive) == 3


def test_a_netrc_does_not_replace_the_key(server, quick, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    AnchorAPI(server.url, KEY).create({})
    assert "authorization" not in server.headers[0]
    assert server.headers[0]["anchor-api-key"] == KEY


def test_cookies_are_not_kept(server, api):
    server.fail("GET", fs.body(b'{"data": {"items": []}}', Set_Cookie="a=b; Path=/"))
    for _ in range(2):
        api.sessions_with_tag(TAG, deadline=later())
    assert "cookie" not in server.headers[1]


def test_the_key_is_in_no_repr(api, server):
    assert KEY not in repr(api)
    assert server.url in repr(api)
    assert KEY not in repr(api._caller.session.auth)
    assert KEY not in repr(vars(api._caller.session))


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_the_key_is_in_no_error(server, api, method, monkeypatch):
    monkeypatch.setattr(endpoints, "CREATE_TIMEOUT", 0.2)
    calls = {
        "POST": lambda: api.create({}),
        "GET": lambda: api.sessions_with_tag(TAG, deadline=later()),
        "DELETE": lambda: api.end("abc", TAG, deadline=later()),
    }
    echo = json.dumps({"error": {"code": KEY, "message": f"bad key {KEY}"}}).encode()
    for fault in (
        fs.reset,
        fs.body(echo, 400),
        fs.body(f"<html>{KEY}</html>".encode(), 403),
        fs.body(b"x" * 195 + KEY.encode(), 403),
        fs.body(json.dumps({"data": {"id": f"x?apiKey={KEY}"}}).encode(), 200 if method == "POST" else 400),
    ):
        server.fail_always(method, fault)
        with pytest.raises(AnchorAPIError) as caught:
            calls[method]()
        check_no_key(caught.value)
        check_no_key(caught.value, KEY[:5])


def test_the_key_is_in_no_frame_when_the_connection_fails(quick):
    api = AnchorAPI(f"http://127.0.0.1:{unused_port()}", KEY)
    with pytest.raises(AnchorAPIError) as caught:
        api.create({})
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert not [text for text in frames(caught.value) if KEY in text]


# signatures


def test_a_seal_depends_on_the_key_the_base_url_and_every_word():
    api = AnchorAPI("https://a.example", KEY)
    signatures = [
        api.sign("inv-1", "id"),
        api.sign("inv-1", "id2"),
        api.sign("inv-2", "id"),
        api.sign("id", "inv-1"),
        api.sign("inv-1"),
        api.sign("inv-1id"),
        AnchorAPI("https://a.example", KEY + "x").sign("inv-1", "id"),
        AnchorAPI("https://a.example/x", KEY).sign("inv-1", "id"),
    ]
    assert len(set(signatures)) == len(signatures)
    assert AnchorAPI("https://a.example", KEY).sign("inv-1", "id") == signatures[0]
    assert all(re.fullmatch("[0-9a-f]{32}", signature) for signature in signatures)
    assert AnchorAPI("https://b.example", KEY).fingerprint == api.fingerprint != AnchorAPI("", "x").fingerprint


# processes and TLS


def test_a_forked_child_uses_connections_of_its_own(server, api):
    api.sessions_with_tag(TAG, deadline=later())
    assert server.connections == 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            api.sessions_with_tag(TAG, deadline=later())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    api.sessions_with_tag(TAG, deadline=later())
    assert server.connections == 2


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """A context for a TLS server on loopback that `requests` trusts."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl is missing")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", *kind, "-keyout", key, "-out", cert, *name]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def serve_tls(listener, context, asked):
    """Take every request in, and answer with a TLS record that cannot be decrypted."""
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        with plain, socket.socket(fileno=os.dup(plain.fileno())) as raw:
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    asked.append(secure.recv(65536).split()[0])
                    raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
                    secure.recv(1)  # until the client has had enough
            except OSError:
                continue


@pytest.fixture
def broken_tls(tls):
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_tls, args=(listener, tls, asked))
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_post_is_not_repeated_when_tls_breaks_after_it(broken_tls, quick):
    url, asked = broken_tls
    with pytest.raises(AnchorLostCreateError):
        AnchorAPI(url, KEY).create({})
    assert asked == [b"POST"]


def test_a_delete_is_repeated_when_tls_breaks(broken_tls, quick):
    url, asked = broken_tls
    with pytest.raises(AnchorAPIError):
        AnchorAPI(url, KEY).end("abc", TAG, deadline=later())
    assert asked == [b"DELETE"] * 4


def test_a_certificate_that_is_not_trusted_creates_nothing(broken_tls, quick, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    url, asked = broken_tls
    with pytest.raises(AnchorAPIError, match="certificate verify failed") as caught:
        AnchorAPI(url, KEY).create({})
    assert type(caught.value) is AnchorAPIError
    assert asked == []
