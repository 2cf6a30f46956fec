"""The `quorate` command: runs the whole platform on one machine, and reads and changes a platform anywhere.

Nothing here is imported by other members. The entry is `quorate_cli.__main__:main`; each command lives in the module
of its name, and is imported when it is called.
"""
