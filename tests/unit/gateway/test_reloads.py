"""What is read again while the gateway runs: on a signal, and when a certificate's files change."""

import asyncio
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from quorate_core.tasks import TaskOwner
from quorate_gateway.proxy.tls import Certificate
from quorate_gateway.reloads import Reloads

WAIT_S_MAX = 10.0
LOOK_INTERVAL_S = 0.005
TOKENS = ("0123456789abcdefghijklmnopqrstuv", "vutsrqponmlkjihgfedcba9876543210")


class Files:
    """A certificate, its key and a token, as whoever renews them writes them."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key, self.token = (folder / name for name in ("tls.crt", "tls.key", "token"))

    def issue(self) -> float:
        """Another certificate, by replacing the files; when it ends."""
        issued = self.authority.issue_cert("shop.example")
        for path, content in (
            (self.certificate, issued.cert_chain_pems[0].bytes()),
            (self.key, issued.private_key_pem.bytes()),
        ):
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").replace(path)
        return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).not_valid_after_utc.timestamp()

    def write_token(self, token: str) -> None:
        self.token.write_text(token)
        self.token.chmod(0o600)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.issue()
    made.write_token(TOKENS[0])
    return made


class Told:
    """What was told of: the tokens to use, and how often there was another certificate."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.reloads = 0
        self.reloaded = asyncio.Event()

    def certificate_reloaded(self) -> None:
        self.reloads += 1
        self.reloaded.set()


def reloads(files: Files, told: Told) -> tuple[Reloads, Certificate]:
    certificate = Certificate(files.certificate, files.key)
    made = Reloads(files.token, told.tokens.append, certificate, told.certificate_reloaded, interval_s=LOOK_INTERVAL_S)
    return made, certificate


async def test_all_of_it_is_read_again_when_asked(files: Files) -> None:
    told = Told()
    made, certificate = reloads(files, told)
    former = certificate.context
    files.write_token(TOKENS[1])
    ends_s = files.issue()
    made.read_again()
    assert told.tokens == [TOKENS[1]]
    assert told.reloads == 1
    assert certificate.context is not former
    assert certificate.not_after_s == ends_s


async def test_what_cannot_be_read_leaves_what_there_was_and_keeps_nothing_else_from_it(files: Files) -> None:
    told = Told()
    made, certificate = reloads(files, told)
    former = certificate.context
    files.token.unlink()
    files.key.write_text("no key at all")
    made.read_again()
    assert (told.tokens, told.reloads) == ([], 0)
    assert certificate.context is former
    files.write_token(TOKENS[1])  # the token is well again, and the key is not
    made.read_again()
    assert (told.tokens, told.reloads) == ([TOKENS[1]], 0)
    files.issue()
    made.read_again()
    assert told.reloads == 1


async def test_a_certificate_whose_files_change_is_loaded_by_itself_and_a_damaged_one_is_not(files: Files) -> None:
    told = Told()
    made, certificate = reloads(files, told)
    former = certificate.context
    async with asyncio.timeout(WAIT_S_MAX), TaskOwner("test") as tasks:
        files.key.write_text("half written")
        tasks.start(made.watch_certificate(), "certificate")
        files.issue()  # the watch may have seen the damage, or not
        await told.reloaded.wait()
        assert certificate.context is not former
        assert not certificate.has_changed
        assert told.tokens == []  # the token is only read when asked


async def test_without_a_certificate_there_is_nothing_to_watch() -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        await Reloads(None, lambda _token: None, None, lambda: None).watch_certificate()
