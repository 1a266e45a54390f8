"""Where the first bad number was born: what guards saw, and what a watched step shows."""
