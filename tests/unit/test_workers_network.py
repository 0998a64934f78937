"""Addresses, the proxy to take, and the certificates to trust."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from workers import network
from workers.errors import WorkerConfigError
from workers.network import check_base_url, is_loopback, proxy_of, tls_context

PROXY = "http://proxy.example:3128"


def reached_by(url: str, **environ: str) -> str | None:
    """The proxy's URL; None: directly."""
    route = proxy_of(httpx.URL(url), environ)
    return str(route.proxy.url) if route else None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "::ffff:127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "0.0.0.0",
    ],
)
def test_loopback_is_never_proxied_whatever_the_variables_hold(host: str) -> None:
    assert is_loopback(host)
    url = f"http://[{host}]:8080" if ":" in host else f"http://{host}:8080"
    for broken in (PROXY, "socks5://127.0.0.1:1", "nonsense://", "http://[::1"):
        assert reached_by(url, ALL_PROXY=broken, HTTP_PROXY=broken, NO_PROXY="[::1") is None


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example.org", "notlocalhost", "::2", "128.0.0.1"])
def test_other_hosts_are_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("url", "environ", "by"),
    [
        ("http://engine", {}, None),
        ("http://engine", {"HTTP_PROXY": PROXY}, PROXY),
        ("http://engine", {"http_proxy": PROXY}, PROXY),
        ("http://engine", {"http_proxy": PROXY, "HTTP_PROXY": "http://other:1"}, PROXY),
        ("http://engine", {"http_proxy": "", "HTTP_PROXY": PROXY}, None),
        ("http://engine", {"HTTPS_PROXY": PROXY}, None),
        ("https://engine", {"HTTPS_PROXY": PROXY, "HTTP_PROXY": "http://other:1"}, PROXY),
        ("https://engine", {"ALL_PROXY": PROXY}, PROXY),
        ("https://engine", {"all_proxy": "http://other:1", "https_proxy": PROXY}, PROXY),
        ("http://engine", {"HTTP_PROXY": " proxy.example:3128 "}, PROXY),
        ("http://engine", {"HTTP_PROXY": "https://proxy.example"}, "https://proxy.example"),
    ],
)
def test_the_variable_of_the_scheme_goes_before_the_one_for_all(
    url: str, environ: dict[str, str], by: str | None
) -> None:
    assert reached_by(url, **environ) == by


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("http://engine", "*"),
        ("http://engine", "other, *"),
        ("http://engine", "other engine"),
        ("http://engine", " ,engine,"),
        ("http://ENGINE", "Engine"),
        ("http://engine.svc", ".svc"),
        ("http://engine.svc", "svc"),
        ("http://svc", ".svc"),
        ("http://engine.svc.", "svc."),
        ("http://engine.svc", "*.svc"),
        ("http://engine", "engine:80"),
        ("https://engine", "engine:443"),
        ("http://engine:8000", "engine:8000"),
        ("http://engine", "http://engine"),
        ("http://engine", "all://engine/"),
        ("http://10.1.2.3", "10.1.2.3"),
        ("http://10.1.2.3:8000", "10.1.2.3:8000"),
        ("http://10.1.2.3", "10.0.0.0/8"),
        ("http://10.1.2.3", "10.9.9.9/8"),
        ("http://10.1.2.3", "10.*"),
        ("http://[fd00::7]", "fd00::7"),
        ("http://[fd00::7]", "[fd00::7]"),
        ("http://[fd00::7]:8000", "[fd00::7]:8000"),
        ("http://[fd00::7]", "fd00:0::7"),
        ("http://[fd00::7]", "fd00::/8"),
        ("http://[fd00::7]", "[fd00::]/8"),
        ("http://engine", "[::1, 10.0.0.0/99, 169.254/16, http://, :, engine"),
    ],
)
def test_what_no_proxy_names_is_reached_directly(url: str, no_proxy: str) -> None:
    for variable in ("NO_PROXY", "no_proxy"):
        assert reached_by(url, ALL_PROXY="socks4://nowhere", **{variable: no_proxy}) is None


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("http://engine", ""),
        ("http://engine", "localhost,127.0.0.1"),
        ("http://engine", "gine"),
        ("http://engine", "engine:81"),
        ("http://engine", "https://engine"),
        ("http://engine.svc.example", ".svc"),
        ("http://10.1.2.3", "10.1.2"),
        ("http://10.1.2.3", "2.3"),
        ("http://10.1.2.3", "11.0.0.0/8"),
        ("http://10.1.2.3", "fd00::/8"),
        ("http://[fd00::7]", "10.0.0.0/8,::/64"),
        ("http://engine", "10.0.0.0/0"),
        ("http://engine", "[::1,/8,://,:"),
    ],
)
def test_what_no_proxy_does_not_name_goes_by_the_proxy(url: str, no_proxy: str) -> None:
    assert reached_by(url, ALL_PROXY=PROXY, NO_PROXY=no_proxy) == PROXY


@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h", "SOCKS5"])
def test_socks_needs_a_package_and_says_so(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(network, "find_spec", lambda name: None)
    with pytest.raises(WorkerConfigError, match=r"^ALL_PROXY: .*httpx\[socks\]"):
        reached_by("http://engine", ALL_PROXY=f"{scheme}://proxy.example:1080")


@pytest.mark.parametrize(
    ("scheme", "taken"), [("socks", "socks5"), ("socks5", "socks5"), ("socks5h", "socks5h")]
)
def test_socks_is_taken_where_its_package_is_there(
    monkeypatch: pytest.MonkeyPatch, scheme: str, taken: str
) -> None:
    monkeypatch.setattr(network, "find_spec", lambda name: name)
    assert reached_by("http://engine", ALL_PROXY=f"{scheme}://proxy:1080") == f"{taken}://proxy:1080"


@pytest.mark.parametrize(
    "value",
    [
        "socks4://user:s3cret@h:1",
        "ftp://user:s3cret@h",
        "http://user:s3cret@[::1",
        "http://",
        "http://h:s3cret",
        "h:99999",
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(variable: str, value: str) -> None:
    with pytest.raises(WorkerConfigError, match=f"^{variable}: ") as caught:
        reached_by("https://engine", **{variable: value})
    assert "s3cret" not in str(caught.value)


def test_a_password_of_the_proxy_is_in_no_representation() -> None:
    route = proxy_of(httpx.URL("http://engine"), {"HTTP_PROXY": "http://user:s3cret@proxy:1"})
    assert route is not None
    assert route.proxy.auth == ("user", "s3cret")
    assert "s3cret" not in repr(route)


HTTPS = httpx.URL("https://engine")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


def test_certificates_come_from_the_variables(authority: Path) -> None:
    context = tls_context(HTTPS, {"SSL_CERT_FILE": str(authority)})
    assert len(context.get_ca_certs()) == 1
    assert context.verify_mode is ssl.CERT_REQUIRED
    folder = tls_context(HTTPS, {"SSL_CERT_DIR": f"/nonexistent:{authority.parent}"})
    assert folder.get_ca_certs() == []  # they are looked up when they are needed
    assert len(tls_context(HTTPS, {"SSL_CERT_FILE": ""}).get_ca_certs()) > 1


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_not_there_are_named_by_their_variable(variable: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(WorkerConfigError, match=f"^{variable}: {missing}"):
        tls_context(HTTPS, {variable: str(missing)})
    tls_context(httpx.URL("http://engine"), {variable: str(missing)})  # needs none


def test_a_file_without_certificates_is_named_by_its_variable(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "empty.pem", tmp_path / "text.pem"):
        if file != tmp_path:
            file.write_text("" if file.stem == "empty" else "no certificate")
        with pytest.raises(WorkerConfigError, match=f"^SSL_CERT_FILE: {file} cannot be used"):
            tls_context(HTTPS, {"SSL_CERT_FILE": str(file)})


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        ("", "is missing"),
        ("127.0.0.1:8080", "must begin with http"),
        ("http://", "must begin with http"),
        ("http://user:s3cret@host", "holds credentials"),
        ("http://host/?a=1", "no query"),
        ("http://host:99999", "port from 1 to 65535"),
        ("http://host:0", "port from 1 to 65535"),
    ],
)
def test_address_that_cannot_be_one_is_refused_at_the_start(base_url: str, said: str) -> None:
    with pytest.raises(WorkerConfigError, match=rf"^base_url: .*{said}") as caught:
        check_base_url(base_url)
    assert "s3cret" not in str(caught.value)
