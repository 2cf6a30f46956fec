"""Sample order service: an order and its event in one local transaction."""
