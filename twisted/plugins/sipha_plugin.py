"""Makes `twistd sipha` known; imports nothing else, since every twistd on the machine reads it."""

from twisted.application.service import ServiceMaker

sipha = ServiceMaker("sipha", "sipha.tap", "A replicated SIP registrar and proxy.", "sipha")
