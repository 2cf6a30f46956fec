"""The API gateway: a strict HTTP/1 data plane that serves one immutable snapshot of routes and endpoints at a time.

`routes` is the document that operators publish; `control` turns it and the registry's instances into snapshots;
`proxy` is the data plane; `admin` shows what is served and why. Start it by `python -m quorate_gateway`.
"""
