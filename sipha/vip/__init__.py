"""The virtual address: who has it, the guard that takes it away, the kernel's gate before it."""
