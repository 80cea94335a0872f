"""What tests need inside a process that trains."""
