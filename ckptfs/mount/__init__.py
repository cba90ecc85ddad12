"""KERNEL: a mount's life, the kernel's requests, the control socket. `session.run` is the door."""
