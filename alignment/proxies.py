"""The proxy between this machine and an address: an error that does not name it sends people to the wrong server."""

from __future__ import annotations

import urllib.parse
import urllib.request


def through_proxy(url: str) -> str:
    """What an error about an address is to say of the proxy that the environment sets for it; empty without one.

    Reads `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` as urllib and httpx do. A password of the proxy is
    left out.
    """
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    kind = parts.scheme if parts.scheme in proxies else "all"
    host = parts.hostname or ""
    if kind not in proxies or urllib.request.proxy_bypass(host):
        return ""
    found = proxies[kind]
    proxy = urllib.parse.urlsplit(found if "://" in found else f"//{found}")
    address = f"{proxy.hostname}:{proxy.port}" if proxy.port else f"{proxy.hostname}"
    return f"; it was asked through the proxy {address} of {kind}_proxy: set no_proxy={host} to ask it directly"
