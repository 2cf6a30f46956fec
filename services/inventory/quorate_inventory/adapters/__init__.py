"""Stock in a database, by SQLAlchemy."""
