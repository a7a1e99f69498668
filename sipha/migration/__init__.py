"""The tables of OpenSIPS and Kamailio: read from where they are, and what their rows mean here."""
