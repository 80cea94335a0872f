"""Where samples come from: each source offers its splits by count and any run of its samples on demand."""
