"""What a service developer installs: registration, discovery, live settings, resilient HTTP."""
