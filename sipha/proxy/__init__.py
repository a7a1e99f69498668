"""The stateful proxy of RFC 3261 §16: target set, forking, responses, Record-Route."""
