"""The proxy between this machine and an address, for error messages."""

from __future__ import annotations

import urllib.parse
import urllib.request


def through_proxy(url: str) -> str:
    """A clause on the proxy that the environment sets for an address; empty without one.

    Reads `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` as urllib and httpx do, and leaves out the proxy's
    password.
    """
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    kind = parts.scheme if parts.scheme in proxies else "all"
    host = parts.hostname or ""
    if kind not in proxies or urllib.request.proxy_bypass(host):
        return ""
    setting = proxies[kind]
    proxy = urllib.parse.urlsplit(setting if "://" in setting else f"//{setting}")
    address = f"{proxy.hostname}:{proxy.port}" if proxy.port else f"{proxy.hostname}"
    return f"; it was asked through the proxy {address} of {kind}_proxy: set no_proxy={host} to ask it directly"
