"""The control-plane process: one store member and every app mounted on it."""
