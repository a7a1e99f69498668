"""The registrar of RFC 3261 §10: REGISTER to a record for the log, and its outcome to a response."""
