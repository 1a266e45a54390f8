"""From events to something people read."""
