"""Processes beside the daemon that read phones' datagrams for it, while it has the log."""
