"""httpx for tests that ask on loopback without TLS.

A client of httpx reads the machine's certificate authorities when it is made, also when it is never to speak TLS: 20 ms
of a core, for each client and each `httpx.get`. A test that asks every 20 ms whether a node is ready would keep a core
busy with that. What is made here has one empty store of authorities instead, so that an https URL fails; nor does it
look for proxies in the environment.
"""

import ssl
from contextlib import AbstractContextManager
from typing import Any

import httpx

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def client(**options: Any) -> httpx.Client:
    return httpx.Client(verify=NO_AUTHORITIES, trust_env=False, **options)


def async_client(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=NO_AUTHORITIES, trust_env=False, **options)


def request(method: str, url: str, **options: Any) -> httpx.Response:
    """One request on a connection of its own, as `httpx.request`."""
    return httpx.request(method, url, verify=NO_AUTHORITIES, trust_env=False, **options)


def get(url: str, **options: Any) -> httpx.Response:
    return request("GET", url, **options)


def post(url: str, **options: Any) -> httpx.Response:
    return request("POST", url, **options)


def put(url: str, **options: Any) -> httpx.Response:
    return request("PUT", url, **options)


def delete(url: str, **options: Any) -> httpx.Response:
    return request("DELETE", url, **options)


def stream(method: str, url: str, **options: Any) -> AbstractContextManager[httpx.Response]:
    return httpx.stream(method, url, verify=NO_AUTHORITIES, trust_env=False, **options)
