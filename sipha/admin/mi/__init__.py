"""What OpenSIPS's management interface calls its methods, and what sipha does for them (docs/mi.md)."""
