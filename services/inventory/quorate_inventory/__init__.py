"""Sample inventory service: stock reserved exactly once, never oversold."""
