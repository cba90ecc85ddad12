"""Faults on purpose: power cuts, failing and full disks, kills. The tests and `script/soak` share it."""
