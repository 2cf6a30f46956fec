"""What the tools of Debian say, as it is understood when peers are fetched."""

import pytest
from fetch_peers import ENVOY, PACKAGED, PYSYNCOBJ, absent_libraries, environment, library_dependencies, parse_version

LDD = """\
\tlinux-vdso.so.1 (0x00007ffe0c5d6000)
\tlibluajit-5.1.so.2 => not found
\tlibssl.so.3 => /lib/x86_64-linux-gnu/libssl.so.3 (0x00007f2a3b000000)
\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f2a3af21000)
"""
DEPENDS = """\
wrk
  PreDepends: dpkg
  Depends: libc6
 |Depends: libluajit-5.1-2
  Depends: libluajit2-5.1-2
  Depends: libssl3
  Depends: adduser
  Suggests: libsomething
"""


def test_only_libraries_that_were_not_found_are_absent() -> None:
    assert absent_libraries(LDD) == ["libluajit-5.1.so.2"]
    assert absent_libraries("\tstatically linked\n") == []


def test_library_packages_are_taken_with_their_alternatives_and_without_the_c_library() -> None:
    assert library_dependencies(DEPENDS) == ["libluajit-5.1-2", "libluajit2-5.1-2", "libssl3"]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("nginx version: nginx/1.22.1", "1.22.1"),
        ("HAProxy version 2.6.12-1+deb12u3 2025/10/03 - a page", "2.6.12"),
        ("etcd Version: 3.4.23\nGit SHA: Not provided\nGo Version: go1.19.8", "3.4.23"),
        ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer", "4.1.0"),
        ("lib/python3.11/envoy  version: 8d2b3a/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
        ("pysyncobj-0.3.17.dist-info", "0.3.17"),
        ("usage: something", None),
    ],
)
def test_a_program_s_version_is_its_first_number_of_three_parts(said: str, version: str | None) -> None:
    assert parse_version(said) == version


def test_folders_of_libraries_come_before_those_that_are_searched_already() -> None:
    assert environment(["/a", "/b"], {"LD_LIBRARY_PATH": "/c"}) == {"LD_LIBRARY_PATH": "/a:/b:/c"}
    assert environment([], {"HOME": "/h"}) == {"HOME": "/h"}


def test_every_peer_has_a_program_and_a_package_of_its_own() -> None:
    peers = [*PACKAGED, ENVOY, PYSYNCOBJ]
    assert len({peer.program for peer in peers}) == len({peer.package for peer in peers}) == len(peers)
