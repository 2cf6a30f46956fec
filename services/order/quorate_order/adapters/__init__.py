"""Orders in a database, by SQLAlchemy."""
