"""Outbox, relay, inbox and event buses for services with their own database."""
