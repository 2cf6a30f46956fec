"""Measures Quorate beside real peers, in one run, on the same cores: `make bench`. README.md says what is compared."""
