"""UDP and streams on Twisted: bytes to sip/ and back."""
