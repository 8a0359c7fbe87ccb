"""Apply LoRAs to a MODEL while it samples."""
